"""Adapters of the library: importing, inspecting, saving, converting, publishing.

Every adapter that is kept passes through here; knows nothing of how one was trained or blended."""
