"""General English for ``wording``: what may be said in several ways without a change of what is asked.

Opposites, kinds of one thing (front, rear) and neighbours (week, month) never share a line: what stands in none has to
be said in both questions.
"""

from __future__ import annotations

import re


def _rules(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), put) for pattern, put in rules)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SPELLING = _rules(
    (r"\b(what|who|when|where|why|how|which|that|it|there|here|he|she|let)'s\b", r"\1 is"),
    (r"\bcan'?t\b|\bcannot\b", "can not"),
    (r"\bwon't\b", "will not"),
    (r"n't\b", " not"),
    (r"'(?:re|m)\b", " are"),
    (r"'ve\b", " have"),
    (r"'(?:ll|d)\b", " would"),
    (r"(?<=\w)'s?(?=[\s,.?!]|$)", " genitive"),
    (r"\bu\.?s\.?a\.(?=\W|$)|\bu\.s\.(?=\W|$)|\bunited states(?: of america)?\b", "usa"),
    (r"\bu\.?k\b\.?|\bunited kingdom\b|\bgreat britain\b", "britain"),
    (r"\b(?:world war (?:ii|two|2)|second world war|ww ?(?:ii|2))\b", "worldwar2"),
    (r"\b(?:world war (?:i|one|1)|first world war|ww ?(?:i|1))\b", "worldwar1"),
    (r"\b(?:19)?([2-9]0)'?s\b", r"years\1"),
    (r"(?<=\d)s\b", ""),
    (r"\b(\d+)(?:st|nd|rd|th)\b", r"\1 th"),
    (r"%|\bper cent\b", " percent "),
    (r"\b(?:km/h|kph|kilomet(?:re|er)s? (?:per|an) hour)\b", "kmh"),
    (r"\bmiles (?:per|an) hour\b", "mph"),
    (r"(?<=\d)\s*(?:mg|milligram(?:me)?s?)\b", " mg"),
    (r"(?<=\d)\s*(?:kg|kilos?|kilogram(?:me)?s?)\b", " kg"),
    (r"(?<=\d)\s*(?:km|kilomet(?:er|re)s?)\b", " km"),
    (r"\btyre", "tire"),
    (r"\bgrey\b", "gray"),
    (r"\b(licen|defen)ce", r"\1se"),
    (r"\bprogramme", "program"),
    (r"\b(alumin|pyj)(?:ium|ama)", r"\1a"),
    (r"(?<=[a-z]{2})our(?=(?:s|ed|ing|ite|al|able|less|ful)?\b)", "or"),
    (r"(?<=[a-z][bt])re(?=s?\b)", "er"),
    (r"(?<=[a-z]{3})is(?=(?:e[sdr]?|ing|ations?)\b)", "iz"),
    (r"(?<=[a-z]{2})ys(?=(?:e[sdr]?|ing)\b)", "yz"),
    (r"(?:ae|oe)(?=[a-z]{2})|oe(?=a\b)", "e"),
    (r"(?<=[aeiou])ll(?=(?:ed|ing|er|ers|or)\b)", "l"),
    (r"(?<=[a-z])geing\b", "ging"),
    (r"ogue\b", "og"),
)
"""Contractions and units; British spelling as Americans write it, now and then in a word that has none: both questions
are written so."""

_WHICH = r"(?:what|which)"
_BE = r"(?:is|are|was|were)"
FRAMES = _rules(
    (r"^\W*(?:(?:please|kindly|hey|hi|help|so|well|ok|okay|and)\b[\s,:]*)+", ""),
    (r"[\s,]*\b(?:please|pls|thanks|thank you)\W*$", ""),
    (
        (
            r"^(?:(?:can|could|would|will) you (?:please |kindly )?(?:tell me|explain(?: to me)?|say|name|describe)"
            r"|(?:would|do) you (?:mind|care to) (?:tell(?:ing)? me|explain(?:ing)?(?: to me)?|say(?:ing)?)"
            r"|tell me|explain|describe|remind me|i wonder|does anyone know|any idea|do you (?:happen to )?know"
            r"|i(?: would| am|) (?:like to know|want to know|wondering|curious))\b(?: about\b)?"
        ),
        "",
    ),
    (
        (
            r"^(?:is it (?:really )?(?:true|correct|right|a fact|the case)|am i right in thinking"
            r"|is there any truth in the (?:belief|claim|idea|story))(?: that)?\b"
        ),
        "whether",
    ),
    (r"^(?:name|list|give)(?: me)?\b", "what"),
    (rf"\bhow come\b|\b(?:for|on) {_WHICH} (?:reason|ground)s?\b", " why "),
    (rf"\b(?:{_WHICH} {_BE} )?the (?:reasons?|explanation)(?: (?:for|why|that|behind|of))?\b", " why "),
    (rf"\b{_WHICH} (?:reason|ground)s? (?:did|do|does|had|have|{_BE} there)\b", " why "),
    (rf"(?:\b{_WHICH} {_BE} the |^)(?:main |usual )?(?:cause|reason)s? (?:of|for)\b", " why "),
    (rf"\b{_WHICH} (?:lies?|lay|{_BE}) behind\b|\bwhat (?:explain(?:s|ed)|account(?:s|ed) for)\b", " why "),
    (
        (
            r"\bwhat (?:caus|prompt)(?:es|ed|s)\b|\bwhat (?:makes?|made|leads?|led|drove|drives"
            r"|brought about|brings about)\b(?: to)?"
        ),
        " why ",
    ),
    (rf"\b(?:by|in) {_WHICH} (?:means|methods?|ways?|manner|fashion)\b", " how "),
    (
        rf"\b{_WHICH} {_BE} (?:the |some )?(?:best |right |recommended |good )?(?:ways?|methods?) (?:to|of|for)\b",
        " how ",
    ),
    (r"\bhow (?:can|do|should|could|might|to) (?:(?:i|you|one|we|people) )?(?:manage to )?", " how do "),
    (rf"\b(?:until|till|up to|to) (?:{_WHICH} year|when)\b", " untilwhen "),
    (rf"\b(?:in |during )?{_WHICH} (?:calendar |model )?year\b|\byear (?:in which|of|when)\b", " inyear "),
    (rf"\b(?:on )?{_WHICH} (?:exact )?(?:day|date)\b|\bdate of\b", " ondate "),
    (rf"\bat {_WHICH} (?:point in )?time\b", " when "),
    (rf"\b(?:in |at )?{_WHICH} (?:place|location|spot)\b|\bwhereabouts\b", " where "),
    (r"\bhow many times\b|\bhow (?:often|frequently)\b", " howoften "),
    (rf"\bhow many\b|\bwhat (?:{_BE} the )?(?:total )?number of\b", " howmany "),
    (rf"\bhow much money\b|\b{_WHICH} (?:{_BE} the )?(?:price|cost) of\b", " howmuch cost "),
    (r"\bwhat (do|does|did) ((?:\S+ ){1,8}?)cost\b", r" howmuch \1 \2 cost "),
    (rf"\bhow much\b|\b{_WHICH} (?:{_BE} the )?(?:amount|quantity) of\b", " howmuch "),
    (rf"\bhow old\b|\bat {_WHICH} age\b", " howold "),
    (
        (
            rf"\b{_WHICH} (?:{_BE} the )?(?:percentage|proportion|share|fraction) of\b"
            rf"|\bhow (?:common|prevalent|widespread) {_BE}\b"
        ),
        " howcommon ",
    ),
    (r"\bhow (?:long|much time)\b", " howlong "),
    (rf"\b{_WHICH} {_BE} (?:meant by|the meanings? of)\b", " what is "),
    (r"\bwhat do(?:es)? the (?:term|word|phrase|expression) (.+?) mean\b", r" what is \1 "),
    (rf"\b{_WHICH} ({_BE}) (.+?)(?<! short) for\W*$", r" what \1 the purpose \2 "),
    (r"\bwhom\b", " who "),
    (rf"\b{_WHICH} (?:person|people|individual)\b", " who "),
    (rf"\b{_WHICH} (?:kind|sort|type|form)s? of\b|\bwhich\b", " what "),
    (
        r"\bwhat (?:effect|impact|influence)s? (do|does|did|had|has|have) (.+?) (?:have |had )?(?:on|upon)\b",
        r" how \1 \2 affect ",
    ),
)
"""What is asked for, in one form: "in which year", "for what reason", "what proportion of"."""

ASKED = frozenset(
    _words(
        "whether what who when inyear ondate untilwhen where why how howmany howmuch howoften howold howcommon howlong"
    )
)
BE = frozenset(_words("is are am was were be been being"))
AUXILIARIES = BE | frozenset(_words("do does did has have had can could will would should shall may might must"))
PRESENT = frozenset(_words("is are am do does has have"))
PAST = frozenset(_words("was were did had"))
MARKERS = AUXILIARIES | frozenset(
    _words("of in on at for by with about to from into during among since and or that than as via upon within through")
)
"""They say how the words after them stand in the question."""
OPPOSITE_MARKERS = frozenset(map(frozenset, (("to", "from"), ("to", "by"), ("from", "by"), ("with", "by"))))
FREE = (MARKERS - {"should", "must", "than", "from"}) | frozenset(
    _words(
        """
    a an the this these those there here it its i you we he she they me us my your our his her their them one ones
    oneself myself yourself himself herself themselves itself someone somebody anyone anybody people person persons
    human some any really actually exactly precisely roughly approximately ever just quite rather very so also even
    altogether genitive please truly genuinely particular specifically basically own such then get gets got getting
    """
    )
)
"""What needs no counterpart in the other question."""
NUMBERS = dict(zip(_words("two three four five six seven eight nine ten eleven twelve"), range(2, 13), strict=True))
NUMBERS |= dict(
    zip(_words("thirteen fourteen fifteen sixteen seventeen eighteen nineteen"), range(13, 20), strict=True)
)
NUMBERS |= dict(zip(_words("twenty thirty forty fifty sixty seventy eighty ninety"), range(20, 100, 10), strict=True))
NUMBERS |= {"zero": 0, "hundred": 100, "thousand": 1000, "million": 1_000_000}

_IRREGULAR = """
be:is,are,am,was,were,been,being have:has,had do:does,did,done go:goes,went,gone get:got,gotten make:made build:built
sell:sold buy:bought win:won lose:lost lead:led drive:drove,driven give:gave,given take:took,taken come:came
become:became begin:began,begun break:broke,broken bring:brought catch:caught choose:chose,chosen die:died,dying
draw:drew,drawn drink:drank,drunk eat:ate,eaten fall:fell,fallen feel:felt fight:fought find:found fly:flew,flown
forget:forgot,forgotten grow:grew,grown hear:heard hold:held keep:kept know:knew,known lay:laid meet:met mean:meant
pay:paid run:ran ride:rode,ridden rise:rose,risen say:said see:saw,seen seek:sought send:sent shoot:shot
show:showed,shown sing:sang,sung sink:sank,sunk sit:sat sleep:slept speak:spoke,spoken spend:spent stand:stood
steal:stole,stolen swim:swam,swum teach:taught tell:told think:thought throw:threw,thrown wake:woke,woken wear:wore,worn
write:wrote,written child:children man:men woman:women foot:feet tooth:teeth mouse:mice life:lives dream:dreamt
"""
IRREGULAR = {
    form: word for entry in _IRREGULAR.split() for word, _, forms in [entry.partition(":")] for form in forms.split(",")
}
AS_THEY_ARE = frozenset(_words("news lens series species always perhaps mercedes during"))
"""They end like plurals or participles."""
PAST_FORMS = frozenset(form for form, word in IRREGULAR.items() if word not in {"be", "have", "do", "child", "man"})
PARTICIPLES = PAST_FORMS | frozenset(_words("put set beaten run cut hit done"))

INSERTABLE = _words("car ever usual main term thing letter manage at_all in_total in_the_first_place")
"""What may stand in one question alone, and anywhere."""
_SAME = """
abandon give_up drop scrap discontinue
acquire buy purchase take_over
adult grownup grown_up grown_ups
affect influence have_an_effect_on have_an_impact_on impact
aid help assist good_for
allow permit
alter change modify
amount quantity
asleep in_my_sleep in_your_sleep in_their_sleep during_sleep while_asleep when_asleep when_i_sleep when_you_sleep
assemble make build produce manufacture construct put_together
assess measure gauge
at_all
attempt try
baby infant
bad harmful unhealthy
badge logo emblem
ban outlaw prohibit forbid
bankrupt bankruptcy go_bust go_bankrupt go_under collapse
begin start commence
big large
bonnet hood
boss chief
britain british uk
car automobile motorcar motor_car auto vehicle
cause bring_about lead_to result_in responsible_for trigger give_rise_to bring_on
cheap inexpensive
child kid youngster
clean wash
common prevalent widespread frequent
company firm business corporation enterprise
connect link connection relate relation relationship associate association correlate correlation tie
crash accident collision
danger dangerous risky risk hazard hazardous unsafe
decrease reduce cut lessen diminish
design style draw_up designer_of draw
determine work_out
die be_kill get_kill lose_life perish death pass_away
doctor physician clinician medic
dog canine
drug medicine medication
elderly old_people older_people older_adult old_adult old_folk elderly_people senior old_age later_life
end finish stop cease quit
engine motor
entire whole complete
establish set_up founded founder_of founder
expensive dear costly
fall_asleep drop_off doze_off drift_off nod_off get_to_sleep fall_to_sleep
fast quick rapid speedy
film movie motion_picture
fix repair mend
gas petrol gasoline
good beneficial healthy
happen take_place occur
harm hurt damage
highway motorway freeway
home house
in_total all_in_all
in_the_first_place
increase raise boost
indicator turn_signal
install put_up put_in erect fit
invent come_up_with think_up inventor_of inventor
join merge
launch introduce bring_out bring_in come_out go_on_sale bring_to_market
main principal
mainly mostly chiefly primarily
maker manufacturer builder
mean stand_for symbolize signify denote represent short_for
name call dub nickname
nation country
nearly almost
need require
newborn neonate newborn_baby
now today nowadays currently current at_present
only solely exclusively confined_to limited_to restricted_to
own possess belong owner
price cost
prove demonstrate show
purpose function role
recognize detect
remove get_rid_of
awaken wake wake_up awakening rouse
same identical
say claim
sedan saloon
small little tiny
teenager adolescent teen
television tv
traffic_light traffic_signal
treat treatment therapy
truck lorry
usa america american
use employ utilize
windscreen windshield
young youthful
"""
SAME = tuple(tuple(entry.split("_") for entry in line.split()) for line in _SAME.split("\n") if line)
"""Words and phrases that stand for each other in nearly every question, one line each."""
