"""The typed Python API of the workbench; ARCHITECTURE.md describes the packages."""

from backend import errors, requests, results
from backend.catalogue import blends
from backend.catalogue.chat_templates import CHAT_TEMPLATES
from backend.catalogue.learning_rate import USUAL_RATES, usual_rate
from backend.catalogue.methods import METHODS, Method, method_of
from backend.catalogue.packaged_models import MODEL_NAMES, PACKAGED_MODELS
from backend.hub_names import HubName
from backend.hub_names import read as read_hub_name
from backend.operations import OPERATIONS, Operation
from backend.permissions import Caller, on_hub
from backend.runs import adjustments
from backend.runs.events import Curve, Event
from backend.service.jobs import Job
from backend.service.service import Service
from backend.settings import Settings
from backend.sizes import size_text

__all__ = [
    "CHAT_TEMPLATES",
    "METHODS",
    "MODEL_NAMES",
    "OPERATIONS",
    "PACKAGED_MODELS",
    "USUAL_RATES",
    "Caller",
    "Curve",
    "Event",
    "HubName",
    "Job",
    "Method",
    "Operation",
    "Service",
    "Settings",
    "adjustments",
    "blends",
    "errors",
    "method_of",
    "on_hub",
    "read_hub_name",
    "requests",
    "results",
    "size_text",
    "usual_rate",
]
