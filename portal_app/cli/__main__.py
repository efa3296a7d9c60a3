"""``python -m portal_app.cli`` is ``vpn-portal``."""

import sys

from portal_app.cli import main

sys.exit(main())
