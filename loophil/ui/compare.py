"""What the Compare tab sends and gets: two versions at one seed, and the blind test."""

import gradio as gr

from loophil.types import Look
from loophil.ui import answers, parse
from loophil.ui.access import Handlers
from loophil.ui.events import Answer, answering, data_url, sent_with


class Compare(Handlers):
    """The handlers. Looking teaches nothing, so anybody may; a blind answer counts, so it is a teacher's."""

    @answering
    def draw(self, request: gr.Request, event: gr.EventData) -> Answer:
        """The same prompt and seed by two versions, each at the same LoRA strength."""
        sent = sent_with(event)
        seed, strength = parse.whole_number(sent.get("seed"), "seed"), parse.number(sent.get("strength", 1), "strength")
        versions = [parse.whole_number(sent.get(side), side) for side in ("left", "right")]
        left, right = self.session.compare(sent.get("prompt") or "", seed, [Look(version, strength) for version in versions])
        return {"pictures": [data_url(left), data_url(right)], "versions": versions, "strength": strength, "seed": seed}

    @answering
    def versions(self, request: gr.Request, event: gr.EventData) -> Answer:
        """What can be compared, and how the blind test stands."""
        return self._known()

    @answering
    def ask(self, request: gr.Request, event: gr.EventData) -> Answer:
        """The next blind pair."""
        self.access.teacher(request)
        sent = sent_with(event)
        version = sent.get("version")
        question = self.session.ask_blind(self.rater(request, sent), None if version is None else parse.whole_number(version, "version"))
        return {
            "question": {
                "id": question.id,
                "version": question.version,
                "prompt": question.prompt,
                "pictures": [data_url(question.left), data_url(question.right)],
            }
        }

    @answering
    def answer(self, request: gr.Request, event: gr.EventData) -> Answer:
        """Which side of a blind pair was better; who was who is said now."""
        self.access.teacher(request)
        sent = sent_with(event)
        milliseconds = sent.get("ms")
        pair = self.session.answer_blind(
            parse.text(sent.get("question"), "question"),
            parse.text(sent.get("choice"), "choice"),
            self.rater(request, sent),
            None if milliseconds is None else parse.whole_number(milliseconds, "ms"),
        )
        return {"answered": pair.key, "choice": pair.choice, "left_is_tuned": pair.left_is_tuned, "version": pair.version, **self._known()}

    def _known(self) -> Answer:
        numbers, names = [version.number for version in self.session.versions()], self.session.version_names()
        known = [{"number": number, "name": names.get(number, "")} for number in reversed(numbers)]
        return {"known": known, "verdicts": [answers.verdict(tally) for tally in reversed(self.session.tallies())]}
