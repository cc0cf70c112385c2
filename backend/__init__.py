"""The workbench's typed Python interface; see ARCHITECTURE.md for the map."""

from backend import blends, errors, requests, results
from backend.events import Curve, Event
from backend.jobs import Job
from backend.methods import METHODS, Method
from backend.service import Service
from backend.settings import Settings

__all__ = [
    "METHODS",
    "Curve",
    "Event",
    "Job",
    "Method",
    "Service",
    "Settings",
    "blends",
    "errors",
    "requests",
    "results",
]
