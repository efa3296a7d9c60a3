"""The least that Flask can do: what a request costs before the portal does anything."""

from flask import Flask

app = Flask(__name__)


@app.get("/hello")
def hello() -> str:
    return "hello\n"
