"""What gunicorn serves: ``portal_app.wsgi:app``."""

import gc
import logging
import os
from pathlib import Path

from portal_app.application import create_app
from portal_app.settings import DEFAULT_FILE, Settings

# systemd's journal adds time and unit. What no line names is not looked up for each of them (logging HOWTO,
# "Optimization"): thread, process, and who called.
logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
logging._srcfile = None
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
app = create_app(Settings.load(Path(os.environ.get("CAUSEWAY_SETTINGS", DEFAULT_FILE))))
# All this stays. A collection of garbage that looks through it stops every request for a tenth of a second.
gc.collect()
gc.freeze()
