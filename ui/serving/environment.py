"""The environment variables that the app reads, and those that Gradio may not read.

Variables may set where the app opens, but never weaken access control. Gradio 6.31 reads many of
its variables during import, so `take_variables` runs before that; this module imports nothing of
Gradio.
"""

from collections.abc import Mapping, MutableMapping

PASSWORD = "ADAPTER_WORKBENCH_PASSWORD"
PASSWORD_FILE = "ADAPTER_WORKBENCH_PASSWORD_FILE"
ALLOW_HOSTS = "ADAPTER_WORKBENCH_ALLOW_HOSTS"
SERVER_NAME = "GRADIO_SERVER_NAME"
SERVER_PORT = "GRADIO_SERVER_PORT"
ROOT_PATH = "GRADIO_ROOT_PATH"

TAKEN = (PASSWORD, PASSWORD_FILE, ALLOW_HOSTS, SERVER_NAME, SERVER_PORT, ROOT_PATH)
"""Read by `options.py`, checked like the flags, and not inherited by any other process."""

KEPT = {
    "GRADIO_ANALYTICS_ENABLED": "start.py sets it to False; the page turns analytics off anyway",
    "GRADIO_TEMP_DIR": "replaced by the workspace's own folder when the page is served",
    "GRADIO_HEARTBEAT_INTERVAL": "some proxies cut a silent connection before 15 seconds",
    "HF_TOKEN": "signs in to the Hub, here and in the model process",
    "HF_HOME": "the folder of the Hub's cache, for the model process",
    "SPACE_ID": "a Space, by app.py: open to all, as a demo with only bundled models and data",
    "SYSTEM": "a Space, by Gradio: shown on the page, and sharing is off",
    "SPACE_HOST": "a Space: where signing in returns to",
    "SPACE_AUTHOR_NAME": "a Space: the account of its owner",
    "SPACES_ZERO_GPU": "a Space: a shorter queue",
    "OAUTH_CLIENT_ID": "a Space: signing in",
    "OAUTH_CLIENT_SECRET": "a Space: signing in",
    "OAUTH_SCOPES": "a Space: signing in",
    "OPENID_PROVIDER_URL": "a Space: signing in",
    "KAGGLE_KERNEL_RUN_TYPE": "would share the page, but share=False wins",
    "PATH": "used to search for Node, which is not started",
    "PYTEST_CURRENT_TEST": "belongs to workflows, which the page does not have",
    "CI": "belongs to workflows",
    "BROWSER": "which browser is opened",
    "DISPLAY": "belongs to workflows",
    "WAYLAND_DISPLAY": "belongs to workflows",
    "SSH_CONNECTION": "belongs to workflows",
    "SSH_TTY": "belongs to workflows",
}
"""Left in the environment for other readers."""

REMOVED = {
    "GRADIO_SHARE": "a public tunnel to this machine",
    "GRADIO_SHARE_SERVER_ADDRESS": "belongs to the tunnel",
    "GRADIO_ALLOWED_PATHS": "serves any folder",
    "GRADIO_BLOCKED_PATHS": "the app blocks its own folders",
    "GRADIO_MCP_SERVER": "turns every handler into a tool for others",
    "GRADIO_VIBE_MODE": "runs code that a visitor sends",
    "GRADIO_LOCAL_DEV_MODE": "lets pages of the origin `null` in",
    "GRADIO_PROFILING": "adds routes that show other users' inputs",
    "GRADIO_RUN_HISTORY": "keeps inputs in the browser",
    "GRADIO_HISTORY_BUCKET": "sends inputs to the Hub",
    "GRADIO_NUM_WORKERS": "serves files on more ports, without the checks",
    "GRADIO_SSR_MODE": "serves the page through Node, without the checks",
    "GRADIO_NODE_PATH": "a program that would be run",
    "GRADIO_NODE_NUM_PORTS": "belongs to Node",
    "GRADIO_NODE_SERVER_NAME": "belongs to Node",
    "GRADIO_NODE_SERVER_PORT": "belongs to Node",
    "GRADIO_NUM_PORTS": "the port is the one that was given",
    "GRADIO_DEBUG": "would never return from opening the page",
    "GRADIO_HOT_RELOAD": "loads code that changed",
    "GRADIO_WATCH_DIRS": "loads code that changed",
    "GRADIO_WATCH_MODULE_NAME": "loads code that changed",
    "GRADIO_WATCH_DEMO_NAME": "loads code that changed",
    "GRADIO_WATCH_DEMO_PATH": "a file that a visitor could replace in vibe mode",
    "GRADIO_WATCH_ENCODING": "loads code that changed",
    "GRADIO_IS_E2E_TEST": "forgets sessions within a second",
    "GRADIO_DEFAULT_CONCURRENCY_LIMIT": "each handler sets its own",
    "GRADIO_ANALYTICS_MAX_EVENTS": "analytics are off",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "analytics are off",
    "GRADIO_CACHE_EXAMPLES": "the page has no examples",
    "GRADIO_CACHE_MODE": "the page has no examples",
    "GRADIO_RESET_EXAMPLES_CACHE": "the page has no examples",
    "GRADIO_EXAMPLES_CACHE": "the page has no examples",
    "GRADIO_FLAGGING_MODE": "the page has no flagging",
    "GRADIO_CHAT_FLAGGING_MODE": "the page has no flagging",
    "GRADIO_WORKFLOW_INBROWSER": "the page has no workflow",
    "FORWARDED_ALLOW_IPS": "uvicorn would trust these proxies; here --trust-proxy does that",
    "WEB_CONCURRENCY": "uvicorn fails on a value that is not a number",
}
"""Removed from the environment, with the reason. Other GRADIO_ variables are removed too."""


def take_variables(environment: MutableMapping[str, str]) -> Mapping[str, str]:
    """Return the non-empty variables of the app; removes them and those that Gradio may not read.

    So the model process and its children do not inherit passwords.
    """
    taken = {name: environment[name] for name in TAKEN if environment.get(name)}
    for name in list(environment):
        is_gradios = name.startswith("GRADIO_") and name not in KEPT
        if name in TAKEN or name in REMOVED or is_gradios:
            del environment[name]
    return taken
