"""The workbench's typed Python interface; see ARCHITECTURE.md for the map."""

from backend import blends, errors, requests, results
from backend.access import Caller
from backend.chat_templates import CHAT_TEMPLATES
from backend.events import Curve, Event
from backend.jobs import Job
from backend.learning_rate import usual_rate
from backend.methods import METHODS, Method, method_of
from backend.operations import OPERATIONS, Operation
from backend.service import Service
from backend.settings import Settings
from backend.sizes import size_text

__all__ = [
    "CHAT_TEMPLATES",
    "METHODS",
    "OPERATIONS",
    "Caller",
    "Curve",
    "Event",
    "Job",
    "Method",
    "Operation",
    "Service",
    "Settings",
    "blends",
    "errors",
    "method_of",
    "requests",
    "results",
    "size_text",
    "usual_rate",
]
