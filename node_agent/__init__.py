"""The node agent: admits and cuts connections on one node, keeps what it was told on disk, calls nobody."""
