"""POST /api/v3/connect (spec api-v3.md, section 7)."""


def test_app_gets_a_wireguard_configuration_and_its_node_knows_the_peer(node, make_app_user):
    app = make_app_user()
    assert [p["profile_id"] for p in app.info().json["info"]["profile_list"]] == [
        "employees",
        "lab",
        "legacy",
    ]

    response = app.connect("employees")

    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/x-wireguard-profile"
    assert "Address = 10.61.0.2/22,fd43:61::2/110" in response.text
    assert len(node.peers) == 1
