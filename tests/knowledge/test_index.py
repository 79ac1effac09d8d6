from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest

from expert_router.artifacts import load_experts
from expert_router.errors import ConfigError
from expert_router.knowledge.corpus import read_corpus, sentences
from expert_router.knowledge.grounding import texts_read
from expert_router.knowledge.index import CANDIDATES, EXCERPT_SENTENCES, KnowledgeIndex, embed_passages
from expert_router.knowledge.terms import TermIndex
from expert_router.serving.parts import Parts
from expert_router.settings import KnowledgeSettings, load_settings
from support import BENZ, NAPS, STAGES, WordEncoder, passage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from expert_router.ports import Knowledge, TextEncoder
    from expert_router.types import Passage

MELATONIN = passage("Melatonin", "melatonin.md", "The pineal gland makes melatonin at night. Bright light stops it.")
BOTH = passage("Drowsy driving", "driving.md", "A nap before the drive makes a car safer than coffee does.")
CORPORA: Mapping[str, Sequence[Passage]] = {"sleep": [STAGES, NAPS, MELATONIN], "cars": [BENZ, BOTH]}


class BlindEncoder(WordEncoder):
    """No text means anything to it: words alone decide."""

    sha256 = "b" * 64

    def encode(self, text: str) -> NDArray[np.float32]:
        return 0 * super().encode(text)


def make_index(
    cache: Path, encoder: TextEncoder | None = None, corpora: Mapping[str, Sequence[Passage]] = CORPORA
) -> KnowledgeIndex:
    encoder = encoder or WordEncoder()
    terms = TermIndex(corpora)
    return KnowledgeIndex(terms, embed_passages(terms.passages, encoder, cache, progress=False), encoder)


@pytest.fixture
def index(tmp_path: Path) -> KnowledgeIndex:
    return make_index(tmp_path)


def titles(index: Knowledge, expert: str, question: str, *history: str, limit: int = 3) -> list[str]:
    return [hit.passage.title for hit in index.search(expert, question, history, limit)]


# Search


@pytest.mark.parametrize(
    ("expert", "question", "title"),
    [
        ("sleep", "What do the eyes do in REM sleep?", STAGES.title),
        ("sleep", "How many minutes should a nap take?", NAPS.title),
        ("sleep", "Which gland makes melatonin?", MELATONIN.title),
        ("cars", "When did Benz get his patent?", BENZ.title),
    ],
)
def test_the_passage_that_answers_comes_first(index: KnowledgeIndex, expert: str, question: str, title: str) -> None:
    assert titles(index, expert, question)[0] == title


@pytest.mark.parametrize("question", ["How long should a nap take?", "Who was Carl Benz?", "coffee", ""])
def test_an_expert_finds_its_own_passages_only(index: KnowledgeIndex, question: str) -> None:
    for expert, own in CORPORA.items():
        found = [hit.passage for hit in index.search(expert, question, limit=10)]
        assert sorted(p.id for p in found) == sorted(p.id for p in own)


def test_words_find_what_the_encoder_does_not_understand(tmp_path: Path) -> None:
    assert titles(make_index(tmp_path, BlindEncoder()), "sleep", "melatonin")[0] == MELATONIN.title


def test_similarity_is_the_cosine_alone_and_does_not_grow_with_the_question(index: KnowledgeIndex) -> None:
    short = "Bright light stops it"
    long = f"{short}. {short}. {short}."
    once, thrice = (index.search("sleep", question, limit=1)[0] for question in (short, long))
    assert once.passage.title == thrice.passage.title == MELATONIN.title
    assert thrice.similarity == pytest.approx(once.similarity, abs=0.01)
    assert 0 < once.similarity <= 1
    assert once.score > once.similarity  # the words' share


def test_meaning_finds_what_is_said_in_other_words(tmp_path: Path) -> None:
    question = "Does lamplight hinder the hormone?"
    assert not TermIndex(CORPORA).scores(question).any()
    knowing = WordEncoder({"lamplight": "light", "hinder": "stops", "hormone": "melatonin"})
    assert titles(make_index(tmp_path, knowing), "sleep", question)[0] == MELATONIN.title


def test_one_fitting_sentence_of_a_long_passage_is_found(tmp_path: Path) -> None:
    """The whole is about much else, and the other passage is about the subject alone."""
    others = " ".join(f"Somebody{n} wrote something{n} about somewhere{n}." for n in range(15))
    long = passage("History", "history.md", f"{others} Edison held balls while dozing. {others}")
    short = passage("Edison", "edison.md", "Edison disliked beds.")
    index = make_index(tmp_path, corpora={"sleep": [short, long]})
    assert titles(index, "sleep", "Edison held balls while dozing")[0] == "History"


def test_better_passages_score_higher_and_a_perfect_one_about_one(index: KnowledgeIndex) -> None:
    scores = [hit.score for hit in index.search("sleep", MELATONIN.text)]
    assert scores == sorted(scores, reverse=True)
    assert 0.8 < scores[0] < 1.5
    assert scores[1] < 0.6


@pytest.mark.parametrize(("limit", "count"), [(0, 0), (1, 1), (2, 2), (3, 3), (100, 3)])
def test_no_more_are_found_than_are_asked_for_and_the_best_stay(index: KnowledgeIndex, limit: int, count: int) -> None:
    everything = titles(index, "sleep", "naps at night", limit=10)
    assert titles(index, "sleep", "naps at night", limit=limit) == everything[:count]


def test_the_right_one_is_found_among_very_many(tmp_path: Path) -> None:
    crowd = [passage(f"Night {n}", f"{n}.md", f"Night{n} was a night with sleep.") for n in range(5 * CANDIDATES)]
    index = make_index(tmp_path, corpora={"sleep": [*crowd, MELATONIN]})
    assert titles(index, "sleep", "Which gland makes melatonin at night?")[0] == MELATONIN.title
    assert titles(index, "sleep", "night123")[0] == "Night 123"


def test_a_question_that_leans_back_is_read_with_the_turn_before_it(index: KnowledgeIndex) -> None:
    assert titles(index, "sleep", "And when does it stop?", "Who was he?", "Tell me about melatonin")[0] == "Melatonin"
    assert titles(index, "sleep", "And when does it stop?", "Tell me about naps")[0] == "Naps"


@pytest.mark.parametrize(
    "question", ["How long should a nap take?", "Does it make any difference whether one naps at noon or later on?"]
)
def test_a_question_that_stands_alone_is_read_without_what_came_before(index: KnowledgeIndex, question: str) -> None:
    assert index.search("sleep", question, ["Tell me about melatonin"]) == index.search("sleep", question)


def test_an_expert_without_knowledge_finds_nothing(tmp_path: Path) -> None:
    index = make_index(tmp_path, corpora={**CORPORA, "wine": []})
    assert index.search("wine", "naps") == []
    assert index.search("nobody", "naps") == []
    assert titles(index, "sleep", "naps")[0] == NAPS.title


@pytest.mark.parametrize("corpora", [{}, {"sleep": []}], ids=["no expert", "no passage"])
def test_an_empty_corpus_finds_nothing(tmp_path: Path, corpora: dict[str, list[Passage]]) -> None:
    for _ in ("made", "from the cache"):
        assert make_index(tmp_path, corpora=corpora).search("sleep", "naps") == []


def test_many_may_search_at_once(index: KnowledgeIndex) -> None:
    questions = ["naps", "melatonin at night", "Who was Carl Benz?", "eyes"] * 25
    alone = [index.search("sleep", question) for question in questions]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda question: index.search("sleep", question), questions)) == alone


# Excerpts


BEDS = passage(
    "Beds",
    "beds.md",
    "Feathers were a luxury. Springs came from coils of wire. Ropes held the mattress. Straw drew fleas.",
)
HANDLES = passage("Handles", "handles.md", "Brass was common. Wire pulled the bolt. Straw was never used.")


@pytest.mark.parametrize(
    ("question", "excerpt"),
    [
        (
            "Where did springs come from, coils of wire? And the straw?",
            "Springs came from coils of wire. Straw drew fleas.",
        ),
        ("Which straw drew fleas, and did springs too?", "Springs came from coils of wire. Straw drew fleas."),
        ("Who held ropes to a mattress, was luxury of feathers?", "Feathers were a luxury. Ropes held the mattress."),
        ("Ropes held the mattress, wire coils", "Springs came from coils of wire. Ropes held the mattress."),
    ],
)
def test_an_excerpt_is_the_two_sentences_closest_to_the_question_in_the_passages_order(
    tmp_path: Path, question: str, excerpt: str
) -> None:
    """Whatever stands before the passage in the index, and after it."""
    index = make_index(tmp_path, corpora={"cars": [BENZ, HANDLES], "sleep": [STAGES, BEDS, NAPS]})
    assert {hit.passage.title: hit.excerpt for hit in index.search("sleep", question)}["Beds"] == excerpt


def test_a_passage_of_up_to_two_sentences_is_its_own_excerpt(index: KnowledgeIndex) -> None:
    for question in ("naps", "Bright light at night", "", "unheard of"):
        for hit in index.search("sleep", question):
            assert hit.excerpt == hit.passage.text, hit.passage.title


def test_the_same_sentence_twice_is_no_other_sentence_left_out(tmp_path: Path) -> None:
    creaking = passage("Creaks", "creaks.md", "It creaks. Nobody knows why. It creaks. Oil may help.")
    (hit,) = make_index(tmp_path, corpora={"sleep": [creaking]}).search("sleep", "It creaks")
    assert hit.excerpt == "It creaks. It creaks."


def test_where_the_encoder_understands_nothing_the_excerpt_is_the_passages_beginning(tmp_path: Path) -> None:
    (hit,) = make_index(tmp_path, BlindEncoder(), {"sleep": [BEDS]}).search("sleep", "Who sold straw?")
    assert hit.excerpt == "Feathers were a luxury. Springs came from coils of wire."


@pytest.mark.parametrize("text", ["", "No full stop"])
def test_a_passage_without_sentences_is_read_as_it_is(tmp_path: Path, text: str) -> None:
    bare = passage("Pillows", "pillows.md", text)
    found = make_index(tmp_path, corpora={"sleep": [BEDS, bare, NAPS]}).search("sleep", "pillows")
    assert (found[0].passage, found[0].excerpt) == (bare, text)
    assert f"Pillows\n{text}" in texts_read(found[::-1])


def test_a_question_that_leans_back_has_the_excerpt_of_both_turns(tmp_path: Path) -> None:
    index = make_index(tmp_path, corpora={"sleep": [BEDS]})
    (alone,), (leaning,) = (
        index.search("sleep", "And when did it stop?", history) for history in ([], ["Straw drew fleas, ropes held"])
    )
    assert leaning.excerpt == "Ropes held the mattress. Straw drew fleas." != alone.excerpt


# Vectors and their cache


def test_vectors_are_made_once_and_then_read(tmp_path: Path) -> None:
    encoder, later = WordEncoder(), WordEncoder()
    made = embed_passages(CORPORA["sleep"], encoder, tmp_path, progress=False)
    read = embed_passages(CORPORA["sleep"], later, tmp_path, progress=False)
    assert len(made) == len(encoder.read) == 3 + sum(p.text.count(".") for p in CORPORA["sleep"])
    assert later.read == []
    assert np.array_equal(made, read)
    assert made.dtype == read.dtype == np.float16


def test_each_vector_knows_its_passages_title(tmp_path: Path) -> None:
    """A sentence alone often does not say what it is about."""
    encoder = WordEncoder()
    embed_passages([MELATONIN], encoder, tmp_path, progress=False)
    assert encoder.read == [
        "Melatonin. The pineal gland makes melatonin at night. Bright light stops it.",
        "Melatonin: The pineal gland makes melatonin at night.",
        "Melatonin: Bright light stops it.",
    ]


def damaged(how: str, good: bytes) -> bytes:
    header = good.index(b"{")
    return {
        "empty": b"",
        "cut in its header": good[:20],
        "cut in its data": good[:-1],
        "another file": b"not an array\n" * 100,
        "an altered header": good[:header] + b"(" + good[header + 1 :],
        "too few vectors": good.replace(b"(7,)", b"(6,)"),
    }[how]


@pytest.mark.parametrize(
    "how",
    ["empty", "cut in its header", "cut in its data", "another file", "an altered header", "too few vectors"],
)
def test_a_damaged_file_is_made_anew(tmp_path: Path, how: str) -> None:
    made = embed_passages(CORPORA["sleep"], WordEncoder(), tmp_path, progress=False)
    (path,) = (tmp_path / "knowledge").glob("*.npy")
    good = path.read_bytes()
    path.write_bytes(damaged(how, good))
    assert path.read_bytes() != good
    again = embed_passages(CORPORA["sleep"], WordEncoder(), tmp_path, progress=False)
    assert np.array_equal(again, made)
    assert path.read_bytes() == good


def test_another_encoder_has_its_own_vectors(tmp_path: Path) -> None:
    made = embed_passages([NAPS, STAGES], WordEncoder(), tmp_path, progress=False)
    assert not np.array_equal(embed_passages([NAPS, STAGES], BlindEncoder(), tmp_path, progress=False), made)
    assert len(list((tmp_path / "knowledge").glob("*.npy"))) == 2


def test_only_texts_that_are_new_are_read(tmp_path: Path) -> None:
    encoder = WordEncoder()

    def make(*passages: Passage) -> NDArray[np.float16]:
        encoder.read.clear()
        return embed_passages(passages, encoder, tmp_path, progress=False)

    made = make(NAPS, STAGES)
    assert np.array_equal(make(STAGES, NAPS), np.concatenate([made[2:], made[:2]]))
    assert encoder.read == []
    retitled = make(passage("Siestas", NAPS.file, NAPS.text), STAGES)
    assert encoder.read == [f"Siestas. {NAPS.text}", f"Siestas: {NAPS.text}"]
    assert np.array_equal(retitled[2:], made[2:])
    assert not np.array_equal(retitled[:2], made[:2])
    assert np.array_equal(make(NAPS, STAGES), made)
    assert encoder.read == []  # texts that were left out are still known
    assert len(list((tmp_path / "knowledge").glob("*.npy"))) == 1


def test_vectors_of_another_corpus_are_refused(tmp_path: Path) -> None:
    encoder = WordEncoder()
    vectors = embed_passages([NAPS], encoder, tmp_path, progress=False)
    with pytest.raises(ConfigError, match="2 vectors do not fit passages with 7 texts"):
        KnowledgeIndex(TermIndex({"sleep": CORPORA["sleep"]}), vectors, encoder)


def test_nothing_is_shown_unless_progress_is_wanted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_index(tmp_path)
    assert capfd.readouterr() == ("", "")


# What is shipped


PLAIN = [
    ("sleep", "falling-asleep-and-night-waking.md", "why do I jerk awake just as I am falling asleep", "hypnic jerk"),
    ("sleep", "caffeine.md", "How long before bed should I stop drinking coffee?", "six to eight hours"),
    ("sleep", "sleepwalking-and-nrem-parasomnias.md", "Can I wake a sleepwalker or is that risky?", "not dangerous"),
    ("sleep", "history-pioneers.md", "who discovered rem sleep", "Aserinsky"),
    ("sleep", "naps.md", "Which nap length leaves me least groggy?", "10 to 20 minutes"),
    ("cars", "safety.md", "who came up with the three point belt", "Bohlin"),
    ("cars", "ferrari-lamborghini-and-maserati.md", "why is there a horse on every Ferrari", "Baracca"),
    ("cars", "toyota.md", "what was the first mass produced hybrid", "Prius"),
    ("cars", "delorean-tesla-startups.md", "where did they build the DeLorean", "Dunmurry"),
    ("cars", "land-speed-records.md", "What was the top speed of Thrust SSC?", "763"),
]
"""Expert, file, question, and what the right passage says."""


@pytest.fixture(scope="module")
def parts() -> Parts:
    settings = load_settings("default")
    return Parts(settings, load_experts(settings.resolve(settings.paths.experts), settings.home), progress=False)


@pytest.fixture(
    scope="module", params=["ten files", pytest.param("everything", marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def shipped(request: pytest.FixtureRequest, parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Knowledge:
    """The shipped encoder over the shipped corpus; reading all of it takes a minute."""
    if request.param == "everything":
        return parts.knowledge
    files = {file for _, file, _, _ in PLAIN}
    of = parts.terms
    corpora = {
        name: [p for p, owner in zip(of.passages, of.owner_P, strict=True) if owner == number and p.file in files]
        for number, name in enumerate(of.experts)
    }
    return make_index(tmp_path_factory.mktemp("cache"), parts.encoder, corpora)


@pytest.mark.parametrize(
    ("expert", "question", "said"), [(e, q, s) for e, _, q, s in PLAIN], ids=[s for *_, s in PLAIN]
)
def test_a_plain_question_finds_its_passage_among_those_that_are_read(
    shipped: Knowledge, expert: str, question: str, said: str
) -> None:
    found = [hit.passage for hit in shipped.search(expert, question, limit=KnowledgeSettings().passages)]
    assert any(said.lower() in p.text.lower() for p in found), [p.title for p in found]


@pytest.mark.parametrize(
    ("expert", "question", "said"), [(e, q, s) for e, _, q, s in PLAIN], ids=[s for *_, s in PLAIN]
)
def test_what_an_expert_reads_for_a_plain_question_says_the_answer(
    shipped: Knowledge, expert: str, question: str, said: str
) -> None:
    found = shipped.search(expert, question, limit=KnowledgeSettings().passages)
    assert any(said.lower() in text.lower() for text in texts_read(found)), texts_read(found)


def test_an_excerpt_of_a_shipped_passage_is_two_of_its_sentences_in_its_order(shipped: Knowledge) -> None:
    for expert, _, question, _ in PLAIN:
        for hit in shipped.search(expert, question, limit=20):
            own = sentences(hit.passage.text)
            assert len(own) >= EXCERPT_SENTENCES == 2
            assert hit.excerpt in {f"{first} {later}" for first, later in combinations(own, 2)}, hit.passage.title


def shipped_passages(parts: Parts) -> Iterator[tuple[str, list[Passage]]]:
    for name, expert in parts.experts.items():
        assert expert.knowledge is not None
        yield name, read_corpus(expert.knowledge)


def test_every_shipped_passage_has_60_to_150_words(parts: Parts) -> None:
    """Some of them fit a small model's prompt, and each says enough."""
    odd = [
        (name, p.id, len(p.text.split()))
        for name, passages in shipped_passages(parts)
        for p in passages
        if not 60 <= len(p.text.split()) <= 150
    ]
    assert odd == []


def test_every_shipped_passage_has_a_title_of_its_own_and_is_no_cut_off_piece(parts: Parts) -> None:
    for name, passages in shipped_passages(parts):
        assert len({p.title for p in passages}) == len(passages) > 1000, name
        assert len({p.id for p in passages}) == len(passages), name
        assert [p.id for p in passages if p.text.rstrip('")')[-1] not in ".?!"] == []
