"""Serve a Hub on this machine by hand: `python -m tests.hub_server --root DIR`."""

from tests.hub_server.command import main

raise SystemExit(main())
