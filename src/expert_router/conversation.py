"""What a turn asks: without its courtesies, and with the turn it leans on: "And how long does it last?"."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

READ = 25_600
"""Characters of a turn that say what it asks, as many as encoders read; the patterns below take long for a megabyte."""
LONGEST_COURTESY = 1000
FOLLOW_UP_WORDS = 8
"""A turn with more words than this stands on its own."""
LEANS_BACK = re.compile(
    r"^((and|but|or|so|also|then|what about|how about|tell me more|go on|more)\b|why( not)?\W*$)"
    r"|\b(it|its|they|them|their|this|that|these|those|he|she|him|his|her)\b",
    re.IGNORECASE,
)
"""Words that make sense only after another turn."""

FEW_WORDS = 2
FOLLOWED = 3
"""So many of the follow-ups before are read with what they are about."""
SHORTEST = 3
"""Letters of a word that says something."""
_WORD = re.compile(r"[a-z0-9']+")
_ANY_QUESTION = frozenset(
    """
    the and but for nor not yes any all both each more most much many few other others same such only also too
    just even still again else ever never very really quite well good better best bad worse worst first second
    third last next later earlier today now old new big small long short simple simply true sure right wrong
    okay please thanks thank this that these those its they them their she him his her our you your yours who
    whom whose what which when where why how there here one ones some any anyone someone people with from
    about than then into onto over after before because are was were been being did does doing done have has
    had can could will would shall should may might must dont doesnt isnt cant wont ive youre thats whats lets
    like get got give gave going goes went make made take took tell told say said says mean means explain
    example examples instance sort kind way thing things point part think thought know knew read heard believe
    name called call work works happen happens happened come came back need want does hmm hello
    """.split()  # noqa: SIM905 - a list of so many would be a page
)
_NOTHING_ASKED = re.compile(
    r"^\W*(?:(?:ok(?:ay)?|great|perfect|cool|nice|super|brilliant|awesome|lovely|wonderful|wow|lol|ha(?:ha)+|oh|ah|hm+"
    r"|well|right|alright|fine|good|got it|i see|makes sense|interesting|fascinating|amazing|bye|goodbye|see you|cheers"
    r"|thanks?|thx|ty|much appreciated|appreciate it|that'?s? (?:all|it|great|good|helpful)|that helps?"
    r"|so much|a lot|very|again|for (?:the|your|that|this) \w+|for now|then|you|u|too|hello|hi|hey|there|tysm|ta|gr8"
    r"|merci|danke|gracias|grazie(?: mille)?|obrigad[oa]|aha|phew|ouch|oof|aw+|uh[- ]?oh|huh|yay|spooky|nice one"
    r"|(?:absolute )?madness|mind blown|fair enough|good to know|much|(?:great|good|fascinating) stuff"
    r"|(?:what a|that'?s a) relief|got(?:cha| you)"
    r"|good (?:night|morning|evening|day)|yes|no|sure|never ?mind|and|have a \w+ \w+|will do|understood|noted)\b\W*)+$",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"^\W*(?:thanks?|thank you|thx|lol|wow|haha|great|good|cool|nice|perfect|oh|ah|ok(?:ay)? (?:i )?will)\b"
    r"(?!.*(?:\?|\b(?:and|but|what|who|which|when|where|why|how)\b))",
    re.IGNORECASE | re.DOTALL,
)
_ON_THE_WAY = (
    r"(?:ok(?:ay)?|and|but|so|now|then|anyway|right|oh|thanks?|cool|please|can we|could we|let'?s|go|get|once|one|more"
    r"|my|the|a)"
)
_GOES_BACK = re.compile(
    rf"(?:^|[,.;:!?]\s)\W{{0,5}}(?:{_ON_THE_WAY}\b\W{{0,5}}){{0,6}}(?:(?:(?:going|coming|come) )?back (?:to|on)"
    r"|return(?:ing)? to|to the (?:beginning|start)|last (?:one|thing|question) (?:on|about)"
    r"|(?:first|earlier|original|previous) (?:question|topic|subject))\b",
    re.IGNORECASE,
)
_GREETING = (
    r"(?:hi|hello|hey|hiya|greetings|good (?:morning|afternoon|evening|day)|dear \w+)(?: there| all| everyone| again)?"
)
_EXCUSE = r"(?:sorry|apologies|excuse me|pardon me|forgive me)[^,.:;!?\n]{0,40}"
_HOPE = r"(?:i )?(?:hope|trust) (?:you|this|that|all)[^,.:;!?\n]{0,40}|how are you[^,.:;!?\n]{0,20}"
_THANKS = r"(?:many )?(?:thanks|thank you|thx|cheers|please and thank you)(?: \w+){0,6}"
_FILLERS = r"(?:(?:just|please|kindly|like|love|want|to|you|me|if|be|really|a|an|have|got|quick|short|one|for) ){0,6}"
_WHO_ASKS = r"(?:(?:could|can|would|will) (?:you|someone|anyone)|i(?:'d| would| was| am|'m| have)?|my|a|one|quick) "
_WHAT_FOR = (
    r"(?:help(?: me)?(?: with (?:this|that|something))?|know|wondering|question(?: is| for you)?|tell me|answer)"
)
_REQUEST = (
    rf"(?:but |so |and )?{_WHO_ASKS}{_FILLERS}{_WHAT_FOR}|(?:just )?(?:curious|wondering)|(?:quick|one|short) question"
)
_COURTESY = re.compile(
    rf"^(?:(?:{_GREETING}|{_EXCUSE}|{_HOPE}|{_THANKS}|please)\s*(?:[,.:;!?)\u2026]+|-(?=\s))|(?:{_REQUEST})\s*[:,.!?])[\s:)]*",
    re.IGNORECASE,
)
# Only from where a run of signs begins: from each of its places it would take hours for a megabyte of spaces.
_CLOSING = re.compile(rf"(?<![\s,.!?-])[\s,.!?-]+(?:please|pls|{_THANKS})[\s.!?:)]*$", re.IGNORECASE)


def plain(question: str) -> str:
    """Without greetings, excuses and thanks around it: they say nothing of what it is about. At most ``READ`` long."""
    asked = question.lstrip()[:READ].rstrip()
    while (rest := _COURTESY.sub("", asked, count=1)) != asked and re.search(r"\w", rest):
        asked = rest
    rest = _CLOSING.sub("", asked)
    return rest if re.search(r"\w", rest) else asked


def is_courtesy(turn: str) -> bool:
    """Whether a turn is thanks, a greeting or a remark and asks nothing: "Great, that helps!", "thanks, will do"."""
    if len(turn) > LONGEST_COURTESY:
        return False
    return _NOTHING_ASKED.match(turn) is not None or (says_little(turn) and _REMARK.match(turn) is not None)


def content_words(text: str) -> list[str]:
    """Its words but for those that any question may have: names, things and what happens to them are left."""
    words = _WORD.findall(text.lower())
    own = [word for word in words if word.replace("'", "") not in _ANY_QUESTION]
    return [word for word in own if len(word) >= SHORTEST or not word.isalpha()]


def leans_back(question: str) -> bool:
    """Whether the question means nothing without the turn before it."""
    return len(question.split()) <= FOLLOW_UP_WORDS and LEANS_BACK.search(question.strip()) is not None


def points_back(question: str) -> bool:
    """Whether it says nothing of its own, or points back and says not much more: "on whom?", "and later on?"."""
    said = len(content_words(question))
    return not said or (said <= FEW_WORDS + 1 and LEANS_BACK.search(question) is not None)


def says_little(question: str) -> bool:
    """Whether it may go on with another turn or begin a subject: "sharks too?", "how do I cook pasta?"."""
    return len(content_words(question)) <= FEW_WORDS


def goes_back(turn: str) -> bool:
    """Whether it announces an earlier subject: "back to the first one: …"."""
    return _GOES_BACK.search(turn[:READ]) is not None


def context(history: Sequence[str]) -> str:
    """What a follow-up is about: the last plain turn that does not lean back, and what followed on it; oldest first."""
    turns: list[str] = []
    for turn in reversed(history):
        if is_courtesy(turn):
            continue
        turns.insert(0, plain(turn))
        if not leans_back(turns[0]):
            break
    return told(turns)


def told(turns: Sequence[str]) -> str:
    """A subject's first turn and the latest that say something of their own, as one text."""
    return " ".join([*turns[:1], *[turn for turn in turns[1:] if content_words(turn)][-FOLLOWED:]])


def standalone(question: str, history: Sequence[str]) -> str:
    """The plain question, behind what it is about when it leans back; ``history`` is oldest first."""
    asked = plain(question)
    return f"{context(history)} {asked}".strip() if leans_back(asked) else asked
