"""Adapters of the library: importing, inspecting, saving, converting, uploading.

Every adapter that is kept is saved here. Knows nothing of how an adapter was trained or blended."""
