"""The chat page in Gradio: its layout, and what happens on each click.

The conversation lives in the session's state; what is on the screen is always drawn from it. A question goes through
three steps: ``_Page.ask_*`` adds it and shows it, ``_Page.answer`` streams, ``_Page.settle`` tidies up however that
ended. Stop cancels the second step: Gradio closes the generator, which closes the client's connection.

Imported through ``expert_router.ui.chat`` only, because Gradio is heavy.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator  # noqa: TC003 - Gradio reads the annotations
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import gradio as gr  # noqa: TID253 - reached only through ui.chat, whose functions import this module

from expert_router.keys import secret_in
from expert_router.types import AUTO
from expert_router.ui import cards, feedback
from expert_router.ui.catalogue import Catalogue
from expert_router.ui.client import Failed, Text
from expert_router.ui.conversation import Conversation
from expert_router.ui.why import why

if TYPE_CHECKING:
    from collections.abc import Iterator

    from expert_router.ui.client import ChatClient
    from expert_router.ui.conversation import Exchange

TITLE = "Expert Router"
SEND, STOP = "Send", "Stop"
REDRAW_INTERVAL_S = 0.05
"""Text that comes faster than this is shown together: drawing costs the same processor that generates."""
RECHECK_INTERVAL_S = 2.0
"""How often a page without a backend looks whether it is back."""
DOWN_HINT = "Start it with “make run”, or wait: this page looks again by itself."

HEAD = (
    # The browser itself refuses every other host, whatever a model writes.
    '<meta http-equiv="Content-Security-Policy" content="'
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; frame-src 'none'; form-action 'none'\">"
    "<link rel=\"icon\" href=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'>"
    "<rect x='2' y='5' width='28' height='6' rx='3' fill='%236366f1'/>"
    "<rect x='2' y='14' width='19' height='6' rx='3' fill='%23ea580c'/>"
    "<rect x='2' y='23' width='10' height='6' rx='3' fill='%2394a3b8'/></svg>\">"
    # Cards are text to Gradio: opening a “Why?” that is not there yet presses the button that fetches it.
    "<script>document.addEventListener('click', event => { const why = event.target.closest('.er-why > summary');"
    " if (why && !why.parentElement.open && 'ask' in why.parentElement.dataset)"
    " document.getElementById('er-ask-why').click(); }, true)</script>"
)

Update: TypeAlias = Any
"""What Gradio takes for an output component: a value, or a component with the properties to change."""


def theme() -> gr.themes.Base:
    """System fonts only: the page asks no other host for anything."""
    return gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="lg",
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"),
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"),
    )


def build(client: ChatClient) -> gr.Blocks:
    page = _Page(client)
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_height=True) as blocks:
        page.lay_out()
        page.connect(blocks)
    return blocks


class _Page:
    """The components, and the handlers of their events. Holds nothing of any one visitor."""

    def __init__(self, client: ChatClient) -> None:
        self._client = client

    def lay_out(self) -> None:
        self.conversation = gr.State(Conversation())
        self.number = gr.State(0)
        self.catalogue = gr.State(Catalogue())
        self.ask_why = gr.Button("Why?", elem_id="er-ask-why")  # HEAD's script presses it; nobody sees it
        self.taken_down = gr.State(("", ""))
        self.recheck = gr.Timer(RECHECK_INTERVAL_S, active=False)
        with gr.Row(elem_id="er-top"):
            gr.HTML(cards.header())
            self.new_chat = gr.Button("New chat", elem_id="er-new", size="sm", scale=0, min_width=96)
        self.banner = gr.HTML(visible=False, elem_id="er-banner-slot")
        self.chatbot = gr.Chatbot(
            elem_id="er-chat",
            show_label=False,
            container=False,
            scale=1,
            height=None,
            layout="bubble",
            buttons=["copy"],
            feedback_options=None,
            sanitize_html=True,
            allow_tags=False,
            group_consecutive_messages=False,
            latex_delimiters=[],
            placeholder=cards.welcome(Catalogue()),
        )
        with gr.Column(elem_id="er-composer", scale=0):
            self.box = gr.Textbox(
                elem_id="er-box",
                show_label=False,
                label="Your question",
                container=False,
                placeholder="Ask a question",
                lines=1,
                max_lines=6,
                autofocus=True,
                submit_btn=SEND,
                stop_btn=False,
            )
            self.choice = gr.Radio(
                Catalogue().choices, value=AUTO, label="Who answers", elem_id="er-choice", interactive=True
            )

    def connect(self, blocks: gr.Blocks) -> None:
        shown = [self.conversation, self.chatbot, self.box]
        asked_from = [self.conversation, self.number, self.catalogue, self.choice]
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        queued: dict[str, Any] = {**hidden, "concurrency_limit": None}  # only a queued event can show a message
        quick: dict[str, Any] = {**hidden, "queue": False}
        answers = []
        for trigger, handler, inputs in (
            (self.box.submit, self.ask_typed, [self.box, *asked_from]),
            (self.chatbot.example_select, self.ask_example, asked_from),
            (self.chatbot.retry, self.ask_again, asked_from),
            (self.chatbot.option_select, self.ask_option, asked_from),
        ):
            answer = trigger(handler, inputs, shown, **queued).success(
                self.answer,
                [self.conversation, self.catalogue],
                [self.conversation, self.chatbot, self.banner, self.recheck],
                **queued,
            )
            answer.then(self.settle, [self.conversation, self.number, self.catalogue], shown, **quick)
            answers.append(answer)
        self.chatbot.option_select(self.rate, [self.conversation, self.number], self.taken_down, **queued).success(
            self.note, [self.taken_down, self.conversation, self.number, self.catalogue], shown[:2], **quick
        )
        self.box.stop(None, cancels=answers, api_visibility="private")
        for trigger in (self.new_chat.click, self.chatbot.clear):
            trigger(None, cancels=answers, api_visibility="private")
            trigger(self.start_anew, [self.number, self.catalogue], [self.number, self.catalogue, *shown], **quick)
        # In two steps: the second one draws the conversation as it is then, so that what is asked meanwhile stays.
        why_asked = self.ask_why.click(self.explain, [self.conversation, self.catalogue], self.catalogue, **queued)
        why_asked.then(self.redraw, [self.conversation, self.number, self.catalogue], self.chatbot, **quick)
        looked_up = [self.catalogue, self.choice, self.chatbot, self.banner, self.recheck]
        blocks.load(self.look_up, [self.catalogue, self.choice], looked_up, **quick)
        self.recheck.tick(self.look_up, [self.catalogue, self.choice], looked_up, **quick)

    async def look_up(self, catalogue: Catalogue, choice: str, request: gr.Request) -> list[Update]:
        """Ask the backend who can answer: at load, and again and again while it is down."""
        models = await self._client_of(request).models()
        if isinstance(models, Failed):
            return [catalogue, gr.skip(), gr.skip(), *self._down(models)]
        catalogue = replace(catalogue, models=models)
        value = choice if choice in {name for _, name in catalogue.choices} else AUTO
        examples = [{"text": question} for question in catalogue.examples]
        selector = gr.Radio(choices=catalogue.choices, value=value)
        start = gr.Chatbot(examples=examples, placeholder=cards.welcome(catalogue))
        return [catalogue, selector, start, *self._up()]

    def ask_typed(
        self, question: str, conversation: Conversation, number: int, catalogue: Catalogue, choice: str
    ) -> list[Update]:
        return self._ask(question, _current(conversation, number), catalogue, choice)

    def ask_example(
        self, conversation: Conversation, number: int, catalogue: Catalogue, choice: str, event: gr.SelectData
    ) -> list[Update]:
        return self._ask(event.value["text"], _current(conversation, number), catalogue, choice)

    def ask_again(self, conversation: Conversation, number: int, catalogue: Catalogue, choice: str) -> list[Update]:
        """Retry the last question, with what is chosen now: this is how another expert is tried."""
        return self._repeat(_current(conversation, number), catalogue, choice)

    def ask_option(
        self, conversation: Conversation, number: int, catalogue: Catalogue, _choice: str, event: gr.SelectData
    ) -> list[Update]:
        """The person said which expert was meant, so the last question goes there; ``rate`` takes the other choices."""
        if feedback.verdict_in(event.value) is not None:
            raise gr.Error("", visible=False, print_exception=False)
        return self._repeat(_current(conversation, number), catalogue, event.value)

    async def rate(
        self, conversation: Conversation, number: int, request: gr.Request, event: gr.SelectData
    ) -> tuple[str, str]:
        """The person said whether who answered was right, or who should have: the decision, and what was said of it."""
        conversation = _current(conversation, number)
        decision = conversation.exchanges[-1].decision_id if conversation.exchanges else None
        verdict = feedback.verdict_in(event.value)
        if verdict is None or decision is None:
            raise gr.Error("", visible=False, print_exception=False)
        if failed := await self._client_of(request).send_feedback(decision, *feedback.to_send(verdict)):
            raise gr.Error(failed.message, title="Not noted", print_exception=False)
        return decision, verdict

    def note(
        self, taken_down: tuple[str, str], conversation: Conversation, number: int, catalogue: Catalogue
    ) -> list[Update]:
        """Show that it was taken down; a step of its own, as the person may have asked on in the meantime."""
        decision, verdict = taken_down
        conversation = _current(conversation, number)
        if not conversation.exchanges or conversation.exchanges[-1].decision_id != decision:
            return [gr.skip(), gr.skip()]
        conversation = conversation.with_last(replace(conversation.exchanges[-1], verdict=verdict))
        return [conversation, draw(conversation, catalogue)]

    def _repeat(self, conversation: Conversation, catalogue: Catalogue, model: str) -> list[Update]:
        if not conversation.exchanges:
            raise gr.Error("The server no longer knows this conversation.", title="Ask again", print_exception=False)
        _refuse_while_busy(conversation)
        question = conversation.exchanges[-1].question
        return self._ask(question, conversation.without_last(), catalogue, model)

    def _ask(self, question: str, conversation: Conversation, catalogue: Catalogue, model: str) -> list[Update]:
        _refuse_while_busy(conversation)
        if not question.strip():
            raise gr.Error("", visible=False, print_exception=False)
        conversation = conversation.ask(question.strip(), model)
        return [conversation, draw(conversation, catalogue), gr.Textbox("", submit_btn=False, stop_btn=STOP)]

    async def answer(
        self, conversation: Conversation, catalogue: Catalogue, request: gr.Request
    ) -> AsyncIterator[list[Update]]:
        """Stream the answer to the last question."""
        exchange = conversation.exchanges[-1]
        drawn_at = 0.0
        client = self._client_of(request)
        asked = client.stream_chat(conversation.messages(), exchange.model, request.session_hash or "")
        async with aclosing(asked) as events:
            async for event in events:
                exchange = exchange.after(event)
                conversation = conversation.with_last(exchange)
                if isinstance(event, Text) and time.monotonic() - drawn_at < REDRAW_INTERVAL_S:
                    continue
                status = self._down(event) if isinstance(event, Failed) and event.unreachable else self._up()
                yield [conversation, draw(conversation, catalogue), *status]
                drawn_at = time.monotonic()

    def settle(self, conversation: Conversation, number: int, catalogue: Catalogue) -> list[Update]:
        conversation = _current(conversation, number).settled()
        return [conversation, draw(conversation, catalogue), gr.Textbox(submit_btn=SEND, stop_btn=False)]

    def start_anew(self, number: int, catalogue: Catalogue) -> list[Update]:
        # With nothing to forget the catalogue stays as it is: who clicks as the page opens must not undo ``look_up``.
        cleared = replace(catalogue, explanations={}) if catalogue.explanations else gr.skip()
        return [number + 1, cleared, Conversation(number + 1), [], gr.Textbox("", submit_btn=SEND, stop_btn=False)]

    async def explain(self, conversation: Conversation, catalogue: Catalogue, request: gr.Request) -> Catalogue:
        """Ask why the last question went where it went."""
        if not conversation.exchanges:
            return catalogue
        turns = conversation.user_turns(len(conversation.exchanges) - 1)
        found = await self._client_of(request).explain(turns[-1], turns[:-1])
        return replace(catalogue, explanations={**catalogue.explanations, turns: found})

    def redraw(self, conversation: Conversation, number: int, catalogue: Catalogue) -> Update:
        return draw(_current(conversation, number), catalogue)

    def _client_of(self, request: gr.Request) -> ChatClient:
        """With the key that the visitor gave to see the page, where one was asked for."""
        return self._client.with_key(secret_in(request.headers.get("authorization", ""), basic=True))

    def _down(self, failed: Failed) -> list[Update]:
        return [gr.HTML(cards.banner(failed.message, DOWN_HINT), visible=True), gr.Timer(active=True)]

    def _up(self) -> list[Update]:
        return [gr.HTML("", visible=False), gr.Timer(active=False)]


def draw(conversation: Conversation, catalogue: Catalogue) -> list[gr.ChatMessage]:
    """A conversation as messages; only the last exchange offers a choice of experts, and to say why."""
    messages: list[gr.ChatMessage] = []
    for number, exchange in enumerate(conversation.exchanges):
        last = number + 1 == len(conversation.exchanges) and not exchange.busy
        found = catalogue.explanations.get(conversation.user_turns(number))
        messages += _draw_exchange(exchange, catalogue, why(exchange, found, catalogue, askable=last))
    if messages and not conversation.busy:
        messages[-1] = replace(messages[-1], options=_options(conversation.exchanges[-1], catalogue))
    return messages


def _draw_exchange(exchange: Exchange, catalogue: Catalogue, reasons: str) -> Iterator[gr.ChatMessage]:
    """The question, who answers, the answer, its sources. Only text that stands alone can be copied."""
    yield gr.ChatMessage(cards.plain_markdown(exchange.question), "user")
    if card := cards.decision_card(exchange, catalogue, reasons):
        yield gr.ChatMessage(gr.HTML(card))
    if exchange.text:
        yield gr.ChatMessage(cards.plain_markdown(exchange.text))
    if sources := cards.sources(exchange, catalogue):
        yield gr.ChatMessage(gr.HTML(sources))
    if note := cards.footnote(exchange):
        yield gr.ChatMessage(gr.HTML(note))
    if exchange.verdict:
        yield gr.ChatMessage(gr.HTML(cards.noted(feedback.said(exchange.verdict, catalogue))))


def _options(exchange: Exchange, catalogue: Catalogue) -> list[dict[str, str]]:
    """Whom the person may have meant, or what they may say of who answered."""
    if exchange.routed is None:
        return []
    if exchange.routed.decision.kind == "clarify":
        return [{"value": name, "label": catalogue.title(name)} for name in exchange.routed.decision.choices]
    return feedback.choices(exchange, catalogue)


def _refuse_while_busy(conversation: Conversation) -> None:
    if conversation.busy:
        raise gr.Error("Wait for the answer, or stop it first.", title="Still answering", print_exception=False)


def _current(conversation: Conversation, number: int) -> Conversation:
    """The conversation, unless a cancelled answer wrote it after a new one was started."""
    return conversation if conversation.number == number else Conversation(number)
