"""What pip and venv print when an installation fails, and what the user should read instead.

Only a table, for start.py, in the syntax of Python 3.6. In a sentence, {what} is the package that
the output names, {venv} the folder .venv, and {python} the version of Python.
"""

# What pip and venv print -> what the user should read. The first match wins.
CAUSES = (
    (
        r"No space left on device|Errno 28\b|not enough space on the disk|Disk quota exceeded",
        "The disk is full. Free some space (on Linux packages for a GPU take about 8 GB, elsewhere"
        " 2 GB do), then start again.",
    ),
    (
        r"ensurepip is\s+not\s+available|No module named '?(venv|ensurepip)\b",
        "This Python cannot create virtual environments. On Debian and Ubuntu they need an extra"
        " package: sudo apt install python{python}-venv (or python3-venv). Then start"
        " again.",
    ),
    (
        r"(?i)certificate.verify.failed",
        "The package index shows a certificate that this computer does not trust. Check the clock."
        " Behind a company proxy, set PIP_CERT to its certificate. Then start again.",
    ),
    (
        r"connection broken by|Temporary failure in name resolution|getaddrinfo failed"
        r"|NewConnectionError|Failed to establish a new connection|Max retries exceeded|ProxyError"
        r"|SSLError|Connection(Refused|Reset|Aborted)?Error|[Tt]imed out|Timeout"
        r"|Network is unreachable"
        r"|HTTP error (403|407|429|5\d\d)|(403|407|429|5\d\d) (Client|Server) Error",
        "The package index cannot be reached. Setting up needs the internet. Check the connection"
        " or the proxy, then start again.",
    ),
    (
        r"DO NOT MATCH THE HASHES|IncompleteRead|Wheel .* is invalid|BadZipFile",
        "A download arrived damaged. Start again.",
    ),
    (
        r"Permission denied|Errno 13\b|Access is denied|Read-only file system",
        "Writing to {venv} is not allowed. Move the project to a folder that you own, then start"
        " again.",
    ),
    (
        # With constraints, pip reports a version that it cannot find as a conflict.
        r"(No matching distribution found for|The user requested \(constraint\)) (?P<what>\S+)",
        "The package index has no {what} for Python {python} on this computer. Use"
        " Python 3.11, 3.12 or 3.13, 64 bit, on Linux, Windows or a Mac with Apple silicon.",
    ),
)
