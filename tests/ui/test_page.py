"""The chat page as a person meets it: headless Chromium clicks and reads, a small real server answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from fake_backend import MARKUP, ODD_REASON, ODD_TITLE, FakeBackend, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver.remote.webdriver import WebDriver

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromium-driver are not installed")

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)
READABLE = (
    ".er-header h1",
    ".er-header p",
    "#er-new",
    ".er-badge",
    ".er-score",
    ".er-note",
    ".er-reason",
    ".er-name",
    ".er-percent",
    "#er-chat .user p",
    "#er-chat .bot .md p",
    ".er-problem",
    ".er-sources h3",
    ".er-number",
    ".er-titled",
    ".er-file",
    ".er-source p",
    ".er-others > summary",
    ".er-by",
    ".er-why > summary",
    ".er-why h4",
    ".er-word",
    ".er-word small",
    ".er-hint",
    ".er-near li",
    ".er-near .er-by",
    "#er-choice label.selected span",
    "#er-choice label:not(.selected) span",
    "#er-box textarea",
    "#er-box .submit-button",
)
PAGE = """
import sys
from expert_router.commands import run
sys.exit(run(["chat-page", *sys.argv[1:]]))
"""
MOUNTED = """
import asyncio, json, httpx2
from fastapi import FastAPI
from expert_router.ui.chat import mount
app = FastAPI()
app.get("/v1/models")(lambda: {"data": []})
mount(app, "http://127.0.0.1:1", "/chat")
app.get("/late")(lambda: "after the mount")
async def ask():
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://host") as http:
            paths = ["/", "/v1/models", "/late", "/docs", "/nothing", "/chat/", "/chat", "/chatter"]
            return {path: (await http.get(path)).status_code for path in paths}
print(json.dumps(asyncio.run(ask())))
"""
CONTRAST = """
const parse = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
const channel = v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const behind = e => {
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0.99) return c;
  }
  return [255, 255, 255];
};
const e = document.querySelector(arguments[0]);
const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
"""


OPEN_ALL = "document.querySelectorAll('details').forEach(e => e.open = true)"


@dataclass
class Reader:
    """What a person does and sees. Everything is read in one script call, because the page redraws while it streams."""

    driver: WebDriver
    url: str

    def open(self, query: str = "") -> None:
        self.driver.get(f"{self.url}/{query}")
        wait_until(lambda: self.texts("#er-box textarea"), "the page shows its question box")

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText.replaceAll('\\u00a0', ' '))"
        return self.driver.execute_script(script, selector)

    def last(self, selector: str) -> str:
        return (self.texts(selector) or [""])[-1]

    def kinds(self) -> list[str]:
        return self.driver.execute_script(
            "return [...document.querySelectorAll('#er-chat .er-card')].map(e => e.dataset.kind)"
        )

    def click(self, selector: str) -> None:
        script = "const e = document.querySelector(arguments[0]); if (e) e.click(); return !!e"
        wait_until(lambda: self.driver.execute_script(script, selector), f"{selector} can be clicked")

    def send(self, question: str) -> None:
        box = self.driver.find_element("css selector", "#er-box textarea")
        box.send_keys(question + "\n")

    def ask(self, question: str) -> None:
        before = len(self.texts("#er-chat .user"))
        self.send(question)
        wait_until(lambda: len(self.texts("#er-chat .user")) > before, "the question appears")
        self.wait_for_end()

    def wait_for_end(self) -> None:
        wait_until(lambda: self.texts("#er-box .submit-button") and not self.working(), "the answer is complete")

    def working(self) -> bool:
        return bool(self.texts("#er-box .stop-button")) or "pending" in self.kinds()

    def answer(self) -> str:
        return self.last("#er-chat .bot .md")

    def sources(self) -> list[str]:
        """Each passage that can be seen, on one line: number, title, file, and the text once it is open."""
        shown = "e => e.checkVisibility()"
        script = f"return [...document.querySelectorAll('.er-source')].filter({shown}).map(e => e.innerText)"
        return [" ".join(text.split()) for text in self.driver.execute_script(script)]

    def open_why(self) -> None:
        self.click_last(".er-why > summary")
        wait_until(lambda: self.texts(".er-why[open] section"), "it is explained")

    def click_last(self, selector: str) -> None:
        script = "const all = document.querySelectorAll(arguments[0]); all[all.length - 1].click()"
        wait_until(lambda: self.texts(selector), f"{selector} is there")
        self.driver.execute_script(script, selector)

    def start_anew(self) -> None:
        self.click("#er-new")
        wait_until(lambda: not self.texts("#er-chat .user"), "the conversation is empty")

    def choose(self, name: str) -> None:
        self.click(f"#er-choice input[value={name}]")
        wait_until(lambda: self.last("#er-choice label.selected"), f"{name} is chosen")


@pytest.fixture(scope="module")
def backend() -> Iterator[FakeBackend]:
    backend = FakeBackend()
    backend.start()
    yield backend
    backend.stop()


@pytest.fixture(scope="module")
def url(backend: FakeBackend) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-c", PAGE, "--backend", backend.url, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert str(port) in process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    profile: Path = tmp_path_factory.mktemp("chromium")
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened(driver: WebDriver, url: str) -> Reader:
    reader = Reader(driver, url)
    wait_until(lambda: is_up(driver, url), "the page's server answers")
    reader.open()
    return reader


def is_up(driver: WebDriver, url: str) -> bool:
    from selenium.common.exceptions import WebDriverException

    try:
        driver.get(url)
    except WebDriverException:
        return False
    return True


@pytest.fixture
def reader(opened: Reader) -> Reader:
    opened.start_anew()
    if opened.last("#er-choice label.selected") != "Automatic":
        opened.choose("auto")
    return opened


def test_an_empty_page_says_who_can_answer_and_offers_examples(reader: Reader) -> None:
    wait_until(lambda: reader.texts("#er-chat .example"), "the examples are there")
    assert "Sleep science Sleep, dreams" in reader.last(".er-experts")
    assert reader.texts("#er-choice label") == ["Automatic", "Car history", "Sleep science", "General"]


def test_who_answers_comes_before_the_text_and_the_text_grows(reader: Reader, backend: FakeBackend) -> None:
    backend.text_delay_s, usual_s = 0.5, backend.text_delay_s
    reader.send("what happens in rem sleep")
    wait_until(lambda: reader.kinds() == ["single"], "the decision is shown")
    backend.text_delay_s = usual_s
    assert not reader.answer(), "text came before the decision was seen"
    assert reader.last(".er-badge") == "Sleep science"
    card = reader.last(".er-card")
    for shown in ("97 %", "Runner-up: Car history 4 %", "This is about sleep", "None of them"):
        assert shown in card
    lengths = set()
    wait_until(lambda: lengths.add(len(reader.answer())) or not reader.working(), "the answer is complete")
    assert len(lengths) > 4
    assert reader.answer().endswith("muscles are still.")
    assert "first word after 410 ms · complete after 1.6 s · 25 tokens" in reader.last(".er-card")


def test_the_second_turn_sends_the_conversation(reader: Reader, backend: FakeBackend) -> None:
    reader.ask("first question")
    reader.ask("second question")
    assert len(reader.texts("#er-chat .user")) == 2
    roles = [(message["role"], message["content"][:6]) for message in backend.requests[-1]["messages"]]
    assert roles == [("user", "first "), ("assistant", "During"), ("user", "second")]


def test_the_person_overrides_and_retries(reader: Reader, backend: FakeBackend) -> None:
    reader.ask("an overridden question")
    assert backend.requests[-1]["model"] == "auto"
    reader.choose("cars")
    reader.click("#er-chat button[title=Retry]")
    wait_until(lambda: reader.kinds() == ["forced"], "the chosen expert answers")
    reader.wait_for_end()
    assert backend.requests[-1]["model"] == "cars"
    assert [message["content"] for message in backend.requests[-1]["messages"]] == ["an overridden question"]
    assert reader.last(".er-badge") == "Car history"
    assert "chosen by you" in reader.last(".er-card")
    assert len(reader.texts("#er-chat .user")) == 1


def test_stop_frees_the_engine_at_once(reader: Reader, backend: FakeBackend) -> None:
    question = "a long answer, stopped"
    reader.send(question)
    wait_until(lambda: "word word" in reader.answer(), "text comes")
    assert reader.texts(".er-sources") == []
    reader.click("#er-box .stop-button")
    wait_until(lambda: question in backend.left, "the backend sees that the client left", 1.0)
    reader.wait_for_end()
    assert reader.last(".er-foot") == "Stopped."
    assert reader.last(".er-sources") == "Looked at 3 passages"
    kept = reader.answer()
    assert kept.startswith("word word")
    reader.ask("and on")
    assert backend.requests[-1]["messages"][1]["content"].strip() == kept


def test_a_question_waits_for_its_turn_and_an_empty_one_is_none(reader: Reader, backend: FakeBackend) -> None:
    asked = len(backend.requests)
    reader.send("a long answer, interrupted")
    wait_until(lambda: "word" in reader.answer(), "text comes")
    reader.send("too early")
    wait_until(lambda: "Wait for the answer" in reader.last(".toast-body"), "the page says why not")
    assert reader.driver.execute_script("return document.querySelector('#er-box textarea').value") == "too early"
    reader.click("#er-box .stop-button")
    reader.wait_for_end()
    assert reader.texts("#er-chat .user") == ["a long answer, interrupted"]
    reader.send("")
    wait_until(lambda: len(reader.texts("#er-chat .user")) == 2, "what was typed is asked now")
    reader.wait_for_end()
    reader.send("   ")
    time.sleep(0.4)
    assert len(reader.texts("#er-chat .user")) == 2
    assert len(backend.requests) == asked + 2
    reader.driver.find_element("css selector", "#er-box textarea").clear()


def test_a_new_chat_stops_what_runs(reader: Reader, backend: FakeBackend) -> None:
    question = "a long answer, abandoned"
    reader.send(question)
    wait_until(lambda: "word" in reader.answer(), "text comes")
    reader.start_anew()
    wait_until(lambda: question in backend.left, "the backend sees that the client left", 1.0)
    time.sleep(0.3)
    assert not reader.texts("#er-chat .user")
    reader.ask("a fresh start")
    assert len(backend.requests[-1]["messages"]) == 1


def test_an_example_is_asked_by_a_click(reader: Reader, backend: FakeBackend) -> None:
    reader.click("#er-chat .example")
    wait_until(lambda: reader.texts("#er-chat .user"), "the example is asked")
    reader.wait_for_end()
    assert backend.requests[-1]["messages"][0]["content"] == "Who built the first car, and when?"
    assert "Patent-Motorwagen" in reader.answer()
    assert "Runner-up: General (no expert) 5 %" in reader.last(".er-card")


def test_several_experts_general_and_refused_are_told_apart(reader: Reader) -> None:
    reader.ask("why is drowsy driving dangerous")
    assert reader.texts(".er-badge") == ["Sleep science", "Car history"]
    assert reader.texts("#er-chat .bot .md strong") == ["Sleep science", "Car history"]
    reader.ask("capital of france")
    assert reader.last(".er-badge") == "General (no expert)"
    reader.ask("a poem please")
    assert reader.last(".er-badge") == "Not answered"
    assert reader.kinds() == ["several", "general", "refused"]


def test_cited_passages_come_first_and_open_to_their_text(reader: Reader) -> None:
    reader.ask("a cited answer please")
    assert reader.answer() == "Muscles are still [3]. The eyes move [1]: [1](x) and [9] stay as they are."
    assert reader.last(".er-sources h3") == "Sources"
    first = "[1] REM sleep: what happens sleep-stages.md"
    assert reader.sources() == [first, f"[3] {ODD_TITLE} odd & rare.md"]
    reader.click(".er-source summary")
    assert reader.sources()[0] == f"{first} The eyes dart about under closed lids."
    reader.click(".er-source summary")
    assert reader.sources()[0] == first


def test_passages_that_were_only_looked_at_are_folded_away(reader: Reader) -> None:
    reader.ask("a cited answer please")
    assert reader.texts(".er-others > summary") == ["Also looked at 1 passage"]
    reader.click(".er-others > summary")
    assert reader.sources()[-1] == "[2] Naps habits/naps.md"
    reader.click(".er-others .er-source summary")
    assert reader.sources()[-1].endswith("A nap of twenty minutes helps for hours.")


def test_an_expert_that_does_not_know_says_where_it_looked(reader: Reader) -> None:
    reader.ask("unknown")
    assert reader.last(".er-sources") == "Looked at 3 passages"
    assert reader.sources() == []
    reader.ask("capital of france")  # the base model reads nothing
    assert len(reader.texts(".er-sources")) == 1


def test_sources_of_several_experts_stand_under_their_names(reader: Reader) -> None:
    reader.ask("why is drowsy driving dangerous")
    assert reader.texts(".er-by") == ["Sleep science", "Car history"]
    groups = [" ".join(text.split()) for text in reader.texts(".er-group")]
    assert groups == [
        "Sleep science [1] REM sleep: what happens sleep-stages.md Also looked at 2 passages",
        "Car history [2] Drowsiness alerts comfort-and-gadgets.md Also looked at 1 passage",
    ]


def test_sources_stay_with_their_answers_over_turns_and_retries(reader: Reader) -> None:
    reader.ask("a cited answer please")
    reader.click(".er-source summary")
    reader.ask("unknown")
    assert reader.sources()[0].endswith("under closed lids."), "what was opened was closed by the next answer"
    assert [text.splitlines()[0] for text in reader.texts(".er-sources")] == ["Sources", "Looked at 3 passages"]
    reader.choose("cars")
    reader.click("#er-chat button[title=Retry]")
    wait_until(lambda: reader.kinds() == ["single", "forced"], "the chosen expert answers")
    reader.wait_for_end()
    assert [text.splitlines()[0] for text in reader.texts(".er-sources")] == ["Sources", "Looked at 2 passages"]


def test_why_shows_the_words_the_thresholds_and_the_nearest_examples(reader: Reader, backend: FakeBackend) -> None:
    reader.ask("why do the eyes move?")
    asked = len(backend.explained)
    assert reader.texts(".er-why") == ["Why?"]
    reader.open_why()
    assert backend.explained[asked:] == [{"query": "why do the eyes move?", "history": []}]
    words, scores, nearest = (" ".join(text.split()) for text in reader.texts(".er-why section"))
    shown = "Sleep science why+1.5 do+1.0 the\N{MINUS SIGN}1.2 eyes+2.0 move+2.0?"
    assert words.startswith(f"The words that mattered {shown} Tinted words speak for it")
    assert scores.startswith("The scores Sleep science 97 % Car history 4 % None of them 3 % Marked: an expert is")
    assert "needed from 50 %; whoever reaches 35 %" in scores
    assert nearest.startswith(f"The nearest examples 0.91 {ODD_TITLE}? Sleep science 0.43 Who built the first car?")
    assert "0.43 Who built the first car? Car history Sleep science 0.10 A poem None of them" in nearest
    style = "return [...document.querySelectorAll(arguments[0])].map(e => e.style.left)"
    assert reader.driver.execute_script(style, ".er-why .er-mark") == ["50%", "50%", "35%"]
    tint = (
        "return [...document.querySelectorAll('.er-word')].map(e => [e.className, e.style.getPropertyValue('--share')])"
    )
    assert reader.driver.execute_script(tint)[2:4] == [["er-word er-against", "0.62"], ["er-word er-for", "1.00"]]


def test_why_is_fetched_once_and_stays_with_its_answer(reader: Reader, backend: FakeBackend) -> None:
    reader.ask("the first question")
    reader.open_why()
    asked = len(backend.explained)
    for _ in ("closed", "opened again"):
        reader.click_last(".er-why > summary")
    reader.ask("the second question")
    assert [text.splitlines()[-1] for text in reader.texts(".er-why")][-1] == "Why?"
    assert "The words that mattered" in reader.texts(".er-why")[0], "what was opened was closed by the next answer"
    assert len(backend.explained) == asked
    reader.click_last(".er-why > summary")
    wait_until(lambda: len(reader.texts(".er-why[open] section")) == 6, "the second is explained too")
    assert backend.explained[-1] == {"query": "the second question", "history": ["the first question"]}
    assert "Before it: the\N{MINUS SIGN}1.2 first+2.5 question+4.0" in " ".join(reader.last(".er-why").split())


def test_only_the_last_answer_offers_it_and_only_where_the_router_chose(reader: Reader) -> None:
    reader.ask("the first question")
    reader.ask("the second question")
    assert len(reader.texts(".er-why")) == 1
    reader.choose("cars")
    reader.ask("a forced answer")
    assert reader.texts(".er-why") == []


def test_each_of_several_has_its_own_words_and_who_may_be_meant_too(reader: Reader) -> None:
    reader.ask("why is drowsy driving dangerous")
    reader.open_why()
    assert reader.texts(".er-why .er-group .er-by") == ["Sleep science", "Car history"]
    reader.ask("capital of france")
    reader.click_last(".er-why > summary")
    wait_until(lambda: "None of them" in reader.texts(".er-why .er-group .er-by"), "nobody is explained")


def test_what_is_asked_while_it_is_explained_is_not_lost(reader: Reader, backend: FakeBackend) -> None:
    reader.ask("explained slowly")
    backend.explain_delay_s = 1.0
    try:
        reader.click_last(".er-why > summary")
        assert "Looking at each word" in reader.last(".er-why")
        reader.ask("asked meanwhile")
        wait_until(lambda: reader.texts(".er-why section"), "the explanation comes")
    finally:
        backend.explain_delay_s = 0.0
    assert reader.texts("#er-chat .user") == ["explained slowly", "asked meanwhile"]
    reader.ask("and after it")
    assert [message["content"] for message in backend.requests[-1]["messages"]][::2] == [
        "explained slowly",
        "asked meanwhile",
        "and after it",
    ]


def test_examples_that_are_still_being_read_come_when_it_is_opened_again(reader: Reader, backend: FakeBackend) -> None:
    reader.ask("before the examples are read")
    backend.examples_read = False
    try:
        reader.open_why()
    finally:
        backend.examples_read = True
    assert "The examples are still being read. Close this and open it again" in reader.last(".er-why")
    reader.click_last(".er-why > summary")
    reader.click_last(".er-why > summary")
    wait_until(lambda: "0.91" in reader.last(".er-why"), "the examples are there")


def test_an_explanation_that_fails_is_a_sentence_and_can_be_asked_again(reader: Reader, backend: FakeBackend) -> None:
    reader.ask("unexplained")
    reader.click_last(".er-why > summary")
    wait_until(lambda: "No explanation. The router is away." in reader.last(".er-why"), "it says why")
    asked = len(backend.explained)
    reader.click_last(".er-why > summary")
    reader.click_last(".er-why > summary")
    wait_until(lambda: len(backend.explained) > asked, "it is asked again")


def test_a_clarifying_question_is_answered_by_a_click(reader: Reader, backend: FakeBackend) -> None:
    reader.ask("jaguar")
    assert reader.last(".er-badge") == "Which one do you mean?"
    assert reader.texts("#er-chat .option") == ["Car history", "Sleep science"]
    reader.click("#er-chat .option")
    wait_until(lambda: reader.kinds() == ["forced"], "the chosen expert answers")
    reader.wait_for_end()
    assert backend.requests[-1]["model"] == "cars"


@pytest.fixture
def logging_backend(backend: FakeBackend) -> Iterator[FakeBackend]:
    backend.logs = True
    backend.feedback.clear()
    yield backend
    backend.logs = False


def test_a_decision_without_an_id_offers_no_feedback(reader: Reader) -> None:
    reader.ask("first question")
    assert reader.texts("#er-chat .option") == []


def test_a_thumb_up_is_sent_once_and_noted(reader: Reader, logging_backend: FakeBackend) -> None:
    reader.ask("first question")
    assert reader.texts("#er-chat .option") == ["👍 Right choice", "👎 Someone else should have answered"]
    reader.click("#er-chat .option")
    wait_until(lambda: reader.last(".er-foot") == "Noted: the right choice.", "the page says that it was noted")
    asked = len(logging_backend.requests)
    assert logging_backend.feedback == [{"decision": f"id-{asked}", "rating": "up"}]
    assert reader.texts("#er-chat .option") == []
    reader.ask("second question")
    assert len(logging_backend.requests) == asked + 1  # the click asked nothing
    assert len(reader.texts("#er-chat .option")) == 2
    assert reader.texts(".er-foot") == ["Noted: the right choice."]


def test_a_thumb_down_asks_who_should_have_answered(reader: Reader, logging_backend: FakeBackend) -> None:
    reader.ask("first question")
    reader.click("#er-chat .option:last-child")
    wait_until(lambda: "Who should have answered?" in reader.last(".er-foot"), "the page asks who")
    wait_until(
        lambda: reader.texts("#er-chat .option") == ["Car history", "General (no expert)"], "others may be named"
    )
    reader.click("#er-chat .option")
    wait_until(lambda: reader.last(".er-foot") == "Noted: Car history should have answered.", "it is noted")
    decision = f"id-{len(logging_backend.requests)}"
    assert logging_backend.feedback == [
        {"decision": decision, "rating": "down"},
        {"decision": decision, "rating": "down", "expert": "cars"},
    ]
    assert reader.texts("#er-chat .option") == []
    assert reader.kinds() == ["single"]


@pytest.mark.usefixtures("logging_backend")
def test_feedback_that_is_refused_is_a_sentence_and_may_be_tried_again(reader: Reader) -> None:
    reader.ask("a deleted question")
    reader.click("#er-chat .option")
    wait_until(lambda: "There is no such decision." in reader.last(".toast-body"), "the page says why not")
    assert len(reader.texts("#er-chat .option")) == 2
    assert reader.texts(".er-foot") == []
    reader.click(".toast-body button")


def test_a_question_back_is_not_rated_and_a_stopped_answer_is(reader: Reader, logging_backend: FakeBackend) -> None:
    reader.ask("jaguar")
    assert reader.texts("#er-chat .option") == ["Car history", "Sleep science"]
    reader.send("a long answer, stopped and rated")
    wait_until(lambda: "word word" in reader.answer(), "text comes")
    assert reader.texts("#er-chat .option") == []
    reader.click("#er-box .stop-button")
    reader.wait_for_end()
    wait_until(lambda: len(reader.texts("#er-chat .option")) == 2, "it may be rated")
    assert logging_backend.feedback == []


def test_what_a_model_writes_stays_text(reader: Reader) -> None:
    reader.ask("markup <b>bold</b>")
    assert "<img src=x onerror=" in reader.answer()
    assert reader.texts("#er-chat .bot .md code") == ["<b>code</b>"]
    assert reader.texts("#er-chat .user b") == []
    assert reader.texts("#er-chat .md img, #er-chat .md script, #er-chat a[href^=javascript]") == []
    assert reader.last(".er-reason") == ODD_REASON
    reader.open_why()
    assert "markup+3.0 <b>bold+2.0</b>" in reader.last(".er-said")
    assert f"{ODD_TITLE}?" in reader.texts(".er-near li")[0]
    assert reader.texts(".er-why b, .er-why img, .er-why script") == []
    reader.driver.execute_script(OPEN_ALL)
    assert f"{MARKUP} A second line." in reader.sources()[2]
    assert reader.texts(".er-sources img, .er-sources script, .er-sources b, .er-sources code") == []
    assert reader.driver.title == "Expert Router"


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("failing", "The answer broke off. The engine stopped."),
        ("breaking", "The answer broke off. The connection to the backend broke"),
        ("overload", "No answer. Too many questions wait. Try again in 7 s."),
    ],
)
def test_a_failure_is_a_sentence(reader: Reader, question: str, said: str) -> None:
    reader.ask(question)
    assert said in reader.last(".er-problem")


def test_a_backend_that_goes_away_and_comes_back(reader: Reader, backend: FakeBackend) -> None:
    backend.stop()
    try:
        reader.ask("anyone there")
        assert "cannot be reached" in reader.last(".er-problem")
        assert "cannot be reached" in reader.last(".er-banner")
        reader.open()
        wait_until(lambda: "cannot be reached" in reader.last(".er-banner"), "a fresh page says so too")
    finally:
        backend.start()
    wait_until(lambda: not reader.texts(".er-banner"), "the page notices that the backend is back")
    wait_until(lambda: reader.texts("#er-chat .example"), "the examples come late")
    reader.ask("are you back")
    assert reader.kinds() == ["single"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_in_either_theme(reader: Reader, theme: str) -> None:
    reader.open(f"?__theme={theme}")
    reader.ask("failing")
    reader.ask("why is drowsy driving dangerous")
    reader.open_why()
    contrasts = {selector: reader.driver.execute_script(CONTRAST, selector) for selector in READABLE}
    assert {selector: round(ratio, 1) for selector, ratio in contrasts.items() if ratio < 4.5} == {}
    background = reader.driver.execute_script(
        "return getComputedStyle(document.querySelector('gradio-app')).background"
    )
    assert ("rgb(255, 255, 255)" in background) == (theme == "light")


def test_a_phone_scrolls_in_one_direction_only(reader: Reader) -> None:
    metrics: dict[str, Any] = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    reader.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        reader.open()
        reader.ask("why is drowsy driving dangerous " + "verylongword" * 8)
        reader.open_why()
        reader.driver.execute_script(OPEN_ALL)
        assert len(reader.sources()) == 5
        beyond = reader.driver.execute_script(
            "return [...document.querySelectorAll('#er-top *, #er-chat .message *, #er-composer *')]"
            ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className)"
        )
        assert beyond == []
        assert reader.driver.execute_script("return document.documentElement.scrollWidth") == 390
        assert reader.driver.execute_script(
            "const b = document.querySelector('#er-box').getBoundingClientRect(); return b.bottom <= innerHeight"
        )
    finally:
        reader.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_closing_the_page_frees_the_engine(reader: Reader, backend: FakeBackend) -> None:
    question = "a long answer, page closed"
    reader.send(question)
    wait_until(lambda: "word" in reader.answer(), "text comes")
    reader.driver.get("about:blank")
    wait_until(lambda: question in backend.left, "the backend sees that the client left", 3.0)
    reader.open()


def test_the_page_asks_no_other_host(opened: Reader) -> None:
    """Last, because it reads the browser's record of everything above."""
    assert opened.texts("#er-box") != []
    entries = [json.loads(entry["message"])["message"] for entry in opened.driver.get_log("performance")]
    urls = {e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"}
    web = {url for url in urls if url.startswith(("http", "ws"))}
    assert len(web) > 20
    assert {url for url in web if "//127.0.0.1:" not in url} == set()
    severe = [entry["message"] for entry in opened.driver.get_log("browser") if entry["level"] == "SEVERE"]
    left = ("AbortError", "Connection errored out")  # what Gradio logs when a page with a running answer is left
    assert [message for message in severe if not any(known in message for known in left)] == []


def test_the_mounted_page_leaves_every_other_route_alone() -> None:
    done = subprocess.run([sys.executable, "-c", MOUNTED], capture_output=True, text=True, timeout=30, check=True)
    statuses = json.loads(done.stdout.splitlines()[-1])
    assert statuses == {
        "/": 404,
        "/v1/models": 200,
        "/late": 200,
        "/docs": 200,
        "/nothing": 404,
        "/chat/": 200,
        "/chat": 307,
        "/chatter": 404,
    }


def test_the_light_modules_do_not_import_gradio() -> None:
    script = "import sys, expert_router.ui.chat, expert_router.ui.client; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
