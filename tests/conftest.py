"""For all tests."""

import hypothesis

# A machine that is busy is no fault: nothing here judges by time.
hypothesis.settings.register_profile("causeway", deadline=None)
hypothesis.settings.load_profile("causeway")
