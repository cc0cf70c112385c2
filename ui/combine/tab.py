"""The Combine tab: ingredients and weights, their similarity, blending, and the result."""

from typing import Any

import gradio as gr

from backend import blends, errors
from backend import requests as rq
from backend import results as rs
from ui.adapters.converter import Converter
from ui.combine import blend_views
from ui.combine.live_mix import LIVE_TOKENS, LiveMix, colours_of, mix_of, weight_inputs
from ui.components import session_facts
from ui.components.clamped_slider import KeptSlider
from ui.components.event_options import QUIET
from ui.components.feedback import explain, failure_card
from ui.components.forms import Form
from ui.components.safe_view import Node, clicked, el, safe_view
from ui.components.service_handle import ServiceHandle

MOST = 8
"""Most ingredients on the page; the HTTP API allows more."""
FIRST_WEIGHT = 0.5
FIELDS = ("rank", "density", "majority_sign", "seed")
COMPARE_SECONDS = 120.0
NOTHING: Node = el("div")


class CombineTab:
    """Builds the tab and handles its events."""

    def __init__(self, handle: ServiceHandle) -> None:
        self.handle = handle
        self.form = Form(rq.Combine)
        self.picked, self.suggested, self.kept = gr.State([]), gr.State(""), gr.State([])
        self.report = gr.State(None)
        self.made_of: list[str] = []
        """The ids of the last blend's ingredients; all pages look at the same blend."""
        with gr.Row(elem_classes="aw-split"):
            with gr.Column(scale=5, min_width=300, elem_classes="aw-column"):
                self._build_ingredients()
                self._build_method()
            with gr.Column(scale=6, min_width=300, elem_classes="aw-column"):
                self._build_likeness()
                self.live = LiveMix(handle)
        self._build_result()

    def _build_ingredients(self) -> None:
        gr.Markdown("## Ingredients", elem_classes="aw-head")
        self.ingredients = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            max_choices=MOST,
            label="Adapters to blend",
            info="Choose two or more that were made for the loaded base.",
            elem_id="combine-ingredients",
        )
        self.weights = [
            KeptSlider(
                -2,
                2,
                value=FIRST_WEIGHT,
                step=0.05,
                label=f"Weight {number + 1}",
                visible=False,
                elem_id=f"combine-weight-{number}",
                elem_classes="aw-weight",
            )
            for number in range(MOST)
        ]
        with gr.Accordion("Left out", open=False, visible=False) as self.left_out_fold:
            self.left_out = safe_view(NOTHING, label="Adapters left out")
            self.converter = Converter(self.handle, "combine")

    def _build_method(self) -> None:
        gr.Markdown("## Method", elem_classes="aw-head")
        self.method = self.form.add(
            "method",
            choices=[(recipe.title, id) for id, recipe in blends.BLENDS.items()],
            info=None,
            elem_id="combine-method",
            elem_classes="aw-plain",
        )
        self.method_line = safe_view(NOTHING, label="What the method does")
        with gr.Row(elem_classes="aw-fields"):
            self.fields = [self.form.add(name, min_width=140, visible=False) for name in FIELDS]
        self.name = self.form.add("name", elem_id="combine-name", placeholder="polite pirate")
        self.card = safe_view(NOTHING, label="Before you blend", elem_id="combine-card")
        self.go = gr.Button("Blend", variant="primary", interactive=False, elem_id="combine-go")

    def _build_likeness(self) -> None:
        gr.Markdown("## How similar are they?", elem_classes="aw-head")
        self.likeness = safe_view(
            _alone(), label="Similarity of the ingredients", elem_id="combine-likeness"
        )

    def _build_result(self) -> None:
        with gr.Column(visible=False, elem_classes="aw-column") as self.stage:
            gr.Markdown("## Result", elem_classes="aw-head")
            self.result = safe_view(NOTHING, label="The blend", elem_id="combine-result")
            self.taste = gr.Button(
                "Compare the blend with its ingredients",
                size="sm",
                visible=False,
                elem_id="combine-taste",
                elem_classes="aw-auto",
            )
            self.answers = safe_view(NOTHING, label="Answers side by side", elem_id="combine-side")

    # -- wiring ----------------------------------------------------------------------------------

    @property
    def watched(self) -> dict[str, Any]:
        """This browser tab's own inputs of `show`: its form."""
        return {
            "mix_ingredients": self.ingredients,
            "mix_method": self.method,
            "mix_name": self.name,
            "mix_kept": self.kept,
        }

    @property
    def drawn(self) -> list[Any]:
        """The components that `show` draws."""
        return [
            self.ingredients, self.left_out_fold, self.left_out, *self.converter.drawn,
            self.method_line, *self.fields, self.card, self.go, self.stage, self.result,
            self.taste,
        ]  # fmt: skip

    def connect(self) -> list[Any]:
        """Wire the tab's own events; returns those after which the page is redrawn."""
        mix = {"names": self.ingredients, **weight_inputs(self.weights)}
        picked = self.ingredients.change(
            self.pick,
            inputs_kwargs={
                "picked": self.picked, "name": self.name, "suggested": self.suggested, **mix,
            },
            outputs=[self.picked, *self.weights, self.name, self.suggested],
            **QUIET,
        )  # fmt: skip
        picked.then(self.compare, self.ingredients, [self.report, self.likeness], **QUIET)
        self.likeness.click(
            self.look_closer, [self.report, self.ingredients], [self.report, self.likeness], **QUIET
        )
        self.live.connect(self.ingredients, self.weights)
        self.taste.click(self.taste_all, self.live.prompt, self.answers, **QUIET)
        return [
            picked,
            self.left_out.click(self.converter.convert, self.converter.rank, None, **QUIET),
            self.method.change(self.forget_failure, None, None, **QUIET),
            self.name.change(self.forget_failure, None, None, **QUIET),
            self.card.click(self.mend, None, [self.method, self.name], **QUIET),
            self.go.click(
                self.blend,
                inputs_kwargs={**self.form.inputs, **mix},
                outputs=self.answers,
                **QUIET,
            ),
            self.result.click(self.decide, self.kept, [self.kept, self.answers], **QUIET),
        ]

    # -- ingredients -----------------------------------------------------------------------------

    def with_adapter(self, names: list[str], adapter_id: str) -> Any:
        """Return an update that adds an ingredient, unless it cannot be blended."""
        able = _able(self.handle.service.snapshot())
        more = [name for name, info in able.items() if info.id == adapter_id and name not in names]
        return gr.update(choices=list(able), value=[*names, *more][:MOST])

    def pick(
        self, names: list[str], picked: list[str], name: str, suggested: str, **weights: float
    ) -> tuple[Any, ...]:
        """Show a slider for each ingredient; ingredients that stay keep their weights."""
        known = dict(mix_of(picked, weights))
        sliders = [
            gr.update(visible=True, label=each, value=known.get(each, FIRST_WEIGHT))
            for each in names
        ]
        hidden = [gr.update(visible=False)] * (MOST - len(names))
        if name.strip() not in ("", suggested):
            return names, *sliders, *hidden, gr.skip(), gr.skip()
        fresh = self.handle.free_name(" ".join(names)[:40].strip()) if names else ""
        return names, *sliders, *hidden, fresh, fresh

    def compare(self, names: list[str]) -> tuple[Any, Node]:
        """Compare the ingredients with each other."""
        if len(names) < 2:
            return None, _alone()
        try:
            job = self.handle.start(rq.Similarity(names=names))
            report = job.result(timeout=COMPARE_SECONDS)
        except (errors.WorkbenchError, TimeoutError) as error:
            return None, failure_card(explain(error))
        return report.model_dump(), blend_views.likeness(report, colours_of(self.handle), None)

    def look_closer(
        self, report: dict[str, Any] | None, names: list[str], event: gr.EventData
    ) -> Any:
        """Show one pair of the matrix layer by layer."""
        act, arg = clicked(event)
        if act != "pair" or report is None:
            return gr.skip(), gr.skip()
        found = rs.SimilarityReport.model_validate(report)
        first, _, second = arg.partition(",")
        if not (first.isdigit() and second.isdigit() and int(second) < len(found.names)):
            return gr.skip(), gr.skip()
        pair = (int(first), int(second))
        return gr.skip(), blend_views.likeness(found, colours_of(self.handle), pair)

    # -- blending --------------------------------------------------------------------------------

    def blend(self, names: list[str], **values: Any) -> Node:
        """Start the blend; returns at once."""
        try:
            settings = self._settings(values)
            ids = [self.handle.service.library.get(name).id for name in names]
            self.handle.start(rq.Combine(sources=mix_of(names, values), **settings))
            self.made_of = ids
            self.converter.forget()
        except errors.WorkbenchError as error:
            return failure_card(explain(error))
        return NOTHING

    def _settings(self, values: dict[str, Any]) -> dict[str, Any]:
        """Read the form without the fields that the method does not use."""
        used = blends.BLENDS[values["method"]].fields
        unused = {name: self.form.components[name].value for name in FIELDS if name not in used}
        return self.form.read({**values, **unused})

    def mend(self, event: gr.EventData) -> tuple[Any, Any]:
        """Apply the fix that the card offers."""
        act, arg = clicked(event)
        return arg if act == "method" else gr.skip(), arg if act == "rename" else gr.skip()

    def forget_failure(self) -> None:
        """Clear an earlier error, because the form changed."""
        self.handle.forget_failure("combine")

    def decide(self, kept: list[str], event: gr.EventData) -> tuple[Any, Node]:
        """Keep the blend, which closes its card, or delete it."""
        act, arg = clicked(event)
        if act == "keep":
            return [*kept, arg], NOTHING
        if act == "discard":
            try:
                self.handle.start(rq.DeleteAdapter(name=self.handle.require_adapter(arg).name))
            except errors.WorkbenchError as error:
                return gr.skip(), failure_card(explain(error))
        return gr.skip(), NOTHING

    def taste_all(self, prompt: str) -> Node:
        """Ask the blend and its remaining ingredients the same question."""
        blend = self._blend()
        if blend is None:
            return el("p", "The blend no longer exists.", cls="aw-quiet")
        if not (prompt or "").strip():
            return el("p", "Enter a question first.", cls="aw-quiet")
        there = [info for each in self.made_of[:5] if (info := self.handle.adapter(each))]
        names = [info.name for info in (*there, blend.adapter)]
        try:
            found = self.handle.start(
                rq.Compare(
                    prompts=[prompt.strip()],
                    variants=[[(name, 1.0)] for name in names],
                    max_new_tokens=LIVE_TOKENS,
                )
            ).result(timeout=COMPARE_SECONDS)
        except (errors.WorkbenchError, TimeoutError) as error:
            return failure_card(explain(error))
        return blend_views.answers(
            names, colours_of(self.handle), [each[0] for each in found.answers]
        )

    # -- drawing ---------------------------------------------------------------------------------

    def show(
        self,
        snapshot: rs.Snapshot,
        mix_ingredients: list[str] | None = None,
        mix_method: rq.BlendMethod = "cat",
        mix_name: str = "",
        mix_kept: list[str] | None = None,
    ) -> dict[Any, Any]:
        """Draw everything in this tab that follows the session."""
        fitting = session_facts.fitting(snapshot)
        able = _able(snapshot)
        out = [info.name for info in fitting if info.name not in able]
        wanted = mix_ingredients or []
        sources = [able[name] for name in wanted if name in able]
        name = (mix_name or "").strip()
        free = self.handle.free_name(name) if name else ""
        drawing, finished = self._outcome(snapshot, mix_kept or [])
        card, ready = blend_views.readiness(snapshot, sources, mix_method, name, free)
        made = self._blend() if finished else None
        if made is not None and made.adapter.name == name:
            card = blend_views.just_made(name)
        gone = {"value": [info.name for info in sources]} if len(sources) < len(wanted) else {}
        used = blends.BLENDS[mix_method].fields
        return {
            self.ingredients: gr.update(choices=list(able), **gone),
            self.left_out_fold: gr.update(visible=bool(out), label=blend_views.left_out_title(out)),
            self.left_out: blend_views.left_out(fitting, busy=snapshot.job is not None),
            **self.converter.show(snapshot, needed=blend_views.can_convert(fitting)),
            self.method_line: blend_views.method_line(mix_method, sources),
            **{
                field: gr.update(visible=path in used)
                for path, field in zip(FIELDS, self.fields, strict=True)
            },
            self.card: card,
            self.go: gr.update(
                value=f"Blend into {name}" if name else "Blend",
                interactive=ready and bool(name),
                variant="secondary" if finished else "primary",  # the result has the primary button
            ),
            self.stage: gr.update(visible=drawing is not None),
            self.result: drawing or NOTHING,
            self.taste: gr.update(visible=finished, interactive=snapshot.job is None),
        }

    def _outcome(self, snapshot: rs.Snapshot, kept: list[str]) -> tuple[Node | None, bool]:
        if snapshot.job is not None and snapshot.job.operation == "combine":
            return blend_views.progress(snapshot), False
        failure = self.handle.failure("combine")
        if failure is not None:
            return blend_views.blend_failure(failure), False
        blend = self._blend()
        if blend is None or blend.adapter.id in kept:
            return None, False
        return blend_views.outcome(blend), True

    def _blend(self) -> rs.Blend | None:
        """Return the last blend with its current name; None if it is gone."""
        result: rs.Blend | None = self.handle.outcome("combine")
        adapter = self.handle.adapter(result.adapter.id) if result is not None else None
        if result is None or adapter is None:
            return None
        return result.model_copy(update={"adapter": adapter})


def _able(snapshot: rs.Snapshot) -> dict[str, rs.AdapterInfo]:
    """Return the adapters of the loaded base that can be blended, by name."""
    return {
        info.name: info for info in session_facts.fitting(snapshot) if blends.unfit(info) is None
    }


def _alone() -> Node:
    return el("p", "Choose two adapters to see how similar their changes are.", cls="aw-quiet")
