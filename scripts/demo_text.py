"""Made-up English for the demo: questions on short paragraphs, and dialogues with summaries.

Everything is drawn from tables of words, of wordings, and of syllables for names. A seed gives the same text in
every process. In the tables, "|" separates wordings of the same sentence; one of them is drawn.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple, TypeVar

_Text = TypeVar("_Text")


class Fact(NamedTuple):
    """A statement about an entity, and the questions that it answers.

    Attributes:
        kind: the kind of the value, a key of `WORDS` or `COMPOSED`.
        says: the predicate that states the fact; {} stands for the value.
        asks: the question whose answer is the value; {} stands for the entity.
        inverse: the question whose answer is the entity; {} stands for the value. May be empty.
    """

    kind: str
    says: str
    asks: str
    inverse: str = ""


class Topic(NamedTuple):
    """Entities of one kind, and the facts about them.

    Attributes:
        name: a template of the entity's name, with kinds as its fields.
        article: the words before the name; may be empty.
        facts: the facts; each is told of one of a paragraph's two entities.
    """

    name: str
    article: str
    facts: tuple[Fact, ...]


def _names(starts: str, middles: str, ends: str, count: int) -> tuple[str, ...]:
    words = sorted(map("".join, itertools.product(starts.split(), middles.split(), ends.split())))
    return tuple(random.Random(count).sample(words, count))  # the same for every seed of the text


_HEADS = "B C D F G H J K L M N P R S T V W Y Z Bl Br Cl Cr Dr Fl Fr Gl Gr Kl Kr Pl Pr Sk Sl St Sw Th Tr"
_VOWELS = "a e i o u"
_FIRST = "len rik dan la nor vin bel ren mir lo ris na sha lia del mon vy ta wen gard tis ko fred mina"
_SURNAME = """vik sen berg kov lund rup mann sky dorf witz quist gaard brook hart shaw well kin lott ver bek dahl
stone ridge worth combe thorpe more nack pole feld hagen strom wald"""
_TOWN = """ford wick holm mere ham bury stead dale port gate field burn haven cliff marsh bridge minster pool ley
cross view shore moor grove"""
_BRAND = "vane xa dex trix zar phon nova vis lux meda tron pex gon rax"

# A word that may follow "a" must not begin with a vowel sound.
_LISTS = """
profession: baker butcher carpenter teacher doctor nurse lawyer judge farmer fisherman sailor soldier painter
 sculptor dancer writer poet printer tailor weaver potter smith miner mason plumber roofer glazier gardener
 florist barber cook waiter brewer miller shepherd hunter forester librarian banker broker merchant grocer chemist
 botanist biologist surgeon dentist pilot driver mechanic clockmaker jeweller saddler cobbler journalist
 photographer surveyor geologist physicist violinist pianist conductor
cargo: timber salt sugar tea coffee cotton wool silk wheat barley rice pepper cinnamon copper iron tin coal marble
 granite sand glass paper leather rubber tobacco wine cider honey cheese butter herring cod wax soap rope cement
 bricks lead silver sulphur linen hemp cork bamboo cocoa vanilla olives raisins almonds lemons potatoes onions hay
 oats flax amber ivory porcelain
animal: badger beaver bear bison buffalo camel cat cheetah cobra cougar cow coyote crane crocodile crow deer dog
 dolphin donkey duck falcon ferret fox frog gazelle giraffe goat goose gorilla hamster hare hawk hedgehog heron
 horse jackal jaguar kangaroo leopard lion lizard llama lynx mole monkey moose mouse mule panther parrot
 peacock pelican penguin pig pigeon puma rabbit raccoon raven rhino robin seal sheep spider squirrel stork swan
 tiger toad tortoise turtle walrus weasel wolf zebra
subject: maths physics chemistry biology history geography music drama Latin Greek French German Spanish Russian
 Chinese Japanese Danish law medicine botany zoology geology logic rhetoric grammar poetry philosophy theology
 statistics mechanics navigation sculpture drawing cooking design literature sociology psychology politics finance
object: lamp kettle drum violin guitar basket blanket carpet mirror clock candle vase lantern hammer saw ladder
 saddle helmet shield coin ring necklace bracelet crown statue painting map telescope camera radio pen book poster
 puzzle kite ball racket tent backpack suitcase wallet purse jacket jumper coat hat belt boot sandal pillow chair
 table stool cupboard desk bottle cup plate bowl spoon fork teapot pan bicycle scooter flute trumpet harp
 piano bell whistle button ribbon
flavour: pumpkin cherry lemon mushroom spinach tomato potato carrot chicken salmon bean lentil cheese garlic ginger
 walnut honey plum pear peach beetroot cabbage celery fennel leek pepper turkey tuna rhubarb
dish: soup pie cake stew salad tart curry pasta pizza pudding roll pancake risotto
colour: red blue green yellow white black brown grey purple pink silver golden
building: library museum theatre cinema station cafe bakery church school hotel bank hospital stadium gallery
 harbour castle tower bookshop pharmacy restaurant gym pool park garden zoo
vehicle: train bus car ferry plane boat tram taxi coach van
event: party wedding concert lecture picnic play barbecue dance
month: January February March April May June July August September October November December
day: Monday Tuesday Wednesday Thursday Friday Saturday Sunday
hour: one two three four five six seven eight nine ten eleven twelve
span: two three four five six
number: two three four five six seven
price: 10 15 20 25 30 40 50 60
"""

WORDS: dict[str, tuple[str, ...]] = {
    kind: tuple(words.split()) for kind, words in re.findall(r"(\w+): ([^:]+)(?:\n|$)", _LISTS)
}
WORDS |= {
    "first": _names(_HEADS, _VOWELS, _FIRST, 3500),
    "surname": _names(_HEADS, "al er or in un", _SURNAME, 3000),
    "town": _names(_HEADS, "ar el il om ur", _TOWN, 2800),
    "brand": _names(_HEADS, f"{_VOWELS} ei ou", _BRAND, 3200),
    "product": tuple(f"{word}s" for word in WORDS["object"]),
    "river": _names(_HEADS, "a e o", "ll rn ss the dda mble", 300),
    "monthday": tuple(map(str, range(1, 29))),
    "year": tuple(str(year) for year in range(1020, 2020)),
    "amount": tuple(f"{number} crowns" for number in range(20, 1000, 5)),
    "length": tuple(f"{number} metres" for number in range(110, 1000, 2)),
    "count": tuple(str(number) for number in range(2020, 5000, 3)),
    "time": tuple(f"{hour}:{minute:02d}" for hour in range(1, 13) for minute in (0, 5, 10, 20, 25, 35, 40, 50, 55))
    + tuple(f"{part} {hour}" for part in ("half past", "quarter past", "quarter to") for hour in WORDS["hour"]),
}
COMPOSED = {
    "person": "{first} {surname}",
    "city": "{town} on the {river}",
    "date": "{monthday} {month} {year}",
    "food": "{flavour} {dish}",
    "thing": "{colour} {object}",
    "place": "{brand} {building}",
}

# One block for each topic. First line: name / article. Other lines: kind: says / asks / inverse.
_TOPICS = """
{person} / 
city: was born in {}|came from {} / Where was {} born?|Where did {} come from? / Who came from {}?
city: later moved to {}|spent many years in {}|died in {} / To which town did {} move?|Where did {} live later?
profession: worked as a {}|was a {} by trade / What was the profession of {}?|What did {} work as? / Who was a {}?
subject: studied {} at a school|took {} lessons / Which subject did {} study?|What did {} study? / Who studied {}?
date: won a medal on {}|received a medal on {} / When did {} win a medal?|On which day did {} receive a medal?
animal: kept a tame {}|owned a {} as a pet / Which animal did {} keep?|What pet did {} own? / Who kept a {}?

{brand} / the ship
city: was built in {}|came from the yards of {} / Where was {} built?|Where did {} come from?
cargo: carried {}|sailed with a cargo of {} / What did {} carry?|What was the cargo of {}? / Which ship carried {}?
person: had {} as captain|sailed under captain {} / Who was the captain of {}? / Which ship had {} as captain?
date: sank on {}|was lost at sea on {}|went down on {} / When did {} sink?|On which day was {} lost?
date: was launched on {}|first sailed on {} / When was {} launched?|On which day did {} first sail?
amount: was sold for {}|cost its owner {} / How much did {} cost?|For how much was {} sold?

{brand} / 
person: was founded by {}|had {} as its founder / Who founded {}?|Who started {}? / Which company did {} found?
product: made {}|sold good {}|was known for its {} / What did {} make?|What did {} sell? / Which company made {}?
city: was based in {}|had its office in {} / Where was {} based?|In which town was {}? / Who was based in {}?
date: went bankrupt on {}|closed on {} / When did {} close?|On which day did {} go bankrupt?
date: began on {}|sold its first goods on {} / When did {} begin?|When did {} sell its first goods?
count: employed {} people|had {} workers / How many people did {} employ?|How many workers did {} have?

{brand} Bridge / the
person: was designed by {}|was the work of {} / Who designed {}?|Who planned {}? / What did {} design?
date: was opened on {}|opened to traffic on {} / When was {} opened?|On which day did {} open?
date: was repaired on {}|was painted on {} / When was {} repaired?|On which day was {} painted?
length: was {} long|had a length of {}|measured {} in all / How long was {}?|What was the length of {}?
city: stood near {}|led to the town of {} / Near which town was {}?|Where did {} stand? / What stood near {}?
amount: cost {} to build|was built for {} / How much did {} cost?|For how much was {} built?

{brand} Festival / the
city: was held in {}|took place in {} / Where was {} held?|Where did {} take place? / What was held in {}?
month: began in {} each time|was celebrated in {}|was always in {} / In which month was {}?|When did {} begin?
count: drew {} visitors|was attended by {} people / How many visitors did {} draw?|How many people attended {}?
food: was known for its {}|offered {} to everyone / Which dish was served at {}?|What food did {} offer?
person: was opened by {}|had {} as its host / Who opened {}?|Who was the host of {}? / Which festival did {} open?
person: paid {} to sing|had {} as its star / Who sang at {}?|Who was the star of {}? / Where did {} sing?

{brand} Expedition / the
person: was led by {}|had {} as its leader / Who led {}?|Who was the leader of {}? / Which expedition did {} lead?
city: left from {}|set out from {} / Where did {} start?|From which town did {} set out? / What set out from {}?
object: found an old {}|dug up an ancient {} / What did {} find?|What did {} dig up? / Which expedition found a {}?
date: came home on {}|returned on {}|was back on {} / When did {} return?|On which day did {} come home?
date: began on {}|started on {} / When did {} begin?|On which day did {} start?
amount: cost {} in all|was given {} by the king / How much did {} cost?|How much was {} given?

{brand} Museum / the
product: collected {}|had rooms full of {} / What did {} collect?|What did {} show? / What collected {}?
person: was run by {}|had {} as director / Who was the director of {}?|Who ran {}? / Which museum did {} run?
city: stood in {}|was located in {} / Where did {} stand?|In which town was {}? / What stood in {}?
day: was closed every {}|did not open on {} / On which day was {} closed?|When did {} not open?
date: burned down on {}|was destroyed by fire on {} / When did {} burn down?|On which day was {} destroyed?
date: was opened on {}|let its first guests in on {} / When was {} opened?|When did {} open?
"""


def _topics(text: str) -> tuple[Topic, ...]:
    topics = []
    for block in text.strip().split("\n\n"):
        head, *rows = block.splitlines()
        name, article = head.split(" / ")
        facts = tuple(Fact(*re.split(": | / ", row)) for row in rows)
        topics.append(Topic(name, f"{article} ".lstrip(), facts))
    return tuple(topics)


TOPICS = _topics(_TOPICS)

# Speakers {A} and {B} take turns. The other slots are kinds, with a number if a kind occurs more than once.
_SMALL_TALK = (
    "Hi {B}, how was {town9}?|Hello {B}, how did you like {town9}?",
    "Very nice, {A}. {first9} says hello.|Fine, {A}. {first9} is still there.|I liked it, {A}. {first9} did not.",
)
# One block for each scenario: the opening line, then for each outcome three utterances and the summary.
_SCENARIOS = """
Shall we meet at the {place} at {time} on {day}?|Can you be at the {place} on {day} at {time}?
Not at {time}, {A}, I have to help {first}. Is {time2} fine?|I see {first} at {time}, {A}. Could we say {time2}?
Yes, {time2} is fine, {B}.|Then let us say {time2}, {B}.
Good, I will see you on {day}, {A}!|Great, {A}, until {day} then!
{A} and {B} will meet at the {place} at {time2} on {day}.
{first} says the {place} is closed. Shall we try the {place2}?|Not the {place}, {A}. {first} likes the {place2}.
The {place2} is fine too, {B}.|I like the {place2} as well, {B}.
Then I will see you at {time}, {A}.|Good, {A}, at {time} then.
{A} and {B} will meet at the {place2} at {time} on {day}.
Sorry, {A}, I have to visit {first} in {town}.|I can not, {A}. I promised to see {first} in {town}.
What about {day2} at {time2}, {B}?|Would {day2} at {time2} be better, {B}?
No, {A}, I will be in {town} all week.|No, I stay in {town} until the end, {A}.
{B} can not meet {A} at the {place} because {B} is visiting {first} in {town}.

Could you lend me {amount} for a {thing}, {B}?|I need {amount} to buy a {thing}. Can you help, {B}?
I gave {first} a lot of money. I only have {amount2}.|After paying {first} I have just {amount2} left.
That will do, {B}. You get the {amount2} back on {day}.|Then lend me {amount2}, {B}, until {day}.
Fine, {A}, I will bring it to the {place}.|All right, {A}, come to the {place}.
{B} will lend {A} {amount2} for a {thing} until {day}.
Sorry, {A}, I spent all my money on a {thing2}.|I can not, {A}. I just bought a {thing2}.
Who else has {amount}? Maybe {first}?|Could {first} or someone else give me {amount}?
No, {first} is poor, {A}, but {first2} can help you.|Not {first}, {A}. You should ask {first2}.
{B} bought a {thing2} and can not lend {A} {amount}, so {A} should ask {first2}.

The birthday of {first} is on {day}. Shall we buy a {thing}?|{first} gets married on {day}. Maybe a {thing}?
No, {first2} is buying a {thing}. I would rather take a {thing2}.|A {thing} comes from {first2}. Maybe a {thing2}?
I saw a {thing2} for {amount} at {brand}.|A {thing2} costs {amount} at {brand}.
Then buy it for {amount}, {A}.|For {amount} it is fine, {A}. Please get it.
{A} will buy {first} a {thing2} for {amount} because {first2} already has a {thing}.
Yes, {A}, {first} wants a {thing}. What does it cost?|Good, {A}, a {thing} is right. How much is it?
It is {amount} at {brand}, but only {amount2} at {brand2}.|At {brand} {amount}, but at {brand2} just {amount2}.
Then I will go to {brand2} today, {A}.|I can go to {brand2} after work, {A}.
{B} will buy {first} a {thing} for {amount2} at {brand2}.

I lost my {thing}. Is it at the {place}, {B}?|Is my {thing} still at the {place}, {B}? I can not find it.
No, {A}, you left it at the {place2}.|It is not there, {A}. I saw it at the {place2}.
The {place2}! Can you bring it on {day}?|So it was the {place2}. Will you bring it on {day}?
I can not, {A}, but {first} will bring it.|I have no time, {A}, but {first} will do that for me.
{A} left a {thing} at the {place2} and {first} will bring it on {day}.
No, {A}, but {first} found a {thing} there.|Not any more, {A}. I think {first} took the {thing} home.
Good! Where does {first} live, in {town}?|When can I see {first}, and is it in {town}?
Not in {town} but in {town2}. Go there at {time}, {A}.|You can go to {town2} at {time}, {A}, not {town}.
{first} has the {thing} of {A}, who can fetch it in {town2} at {time}.

I will go to {town} on {day} by {vehicle}, {B}.|On {day} I want to take the {vehicle} to {town}, {B}.
There is no {vehicle} on {day}, {A}. Take the {vehicle2}.|The {vehicle} is full, {A}. You can try the {vehicle2}.
When does the {vehicle2} leave, {B}? At {time}?|Does the {vehicle2} leave at {time}, {B}?
No, at {time2}, and {first} will meet you, {A}.|It leaves at {time2}, {A}, and {first} will meet you.
{A} will take the {vehicle2} to {town} at {time2} and {first} will meet {A}.
Do you stay with {first}, {A}?|Will you sleep at the house of {first}, {A}?
No, {first} is in {town2}. I booked the {brand} hotel.|No, {first} moved to {town2}. I booked the {brand} hotel.
The {brand} is nice! Enjoy it, {A}.|I know the {brand}, {A}. Have fun!
{A} will go to {town} by {vehicle} on {day} and stay at the {brand} hotel.

Will you come to the {event} of {first} on {day}, {B}?|We are invited to the {event} of {first} on {day}, {B}.
I would love to go, {A}. Shall I bring a {food}?|How nice, {A}! I could make a {food} for it.
No, {first2} has a {food}. Please make a {food2}.|The {food} comes from {first2}. A {food2} would be nice.
Good, {A}, I will be there with it at {time}.|All right, {A}, it will be ready at {time}.
{B} will come to the {event} of {first} on {day} and bring a {food2}.
Sorry, {A}, I have a {subject} exam.|I can not go, {A}, because of my {subject} exam.
Oh, {first} thought it was a {subject2} exam on {day2}.|Is that not {subject2} on {day2}, as {first} said?
No, {A}, the {subject2} exam was last {day2}.|No {subject2} this time, {A}. Tell {first} I am sorry.
{B} has a {subject} exam and can not come to the {event} of {first} on {day}.

Shall I order a {food} at {brand}, {B}?|I am ordering at {brand}. Do you want a {food}, {B}?
No, {A}, please get me a {food2}.|That is what {first} loves, {A}, but I want a {food2}.
A {food2} costs {amount}, {B}. It is ready at {time}.|Good, {B}. The {food2} for {amount} is ready at {time}.
Then I will fetch it at {time}, {A}.|Yes, {time} is good, {A}. I will pick it up.
{A} will order a {food2} at {brand} and {B} will fetch it at {time}.
Not at {brand}, {A}. Let us try {brand2}.|No, {first} got sick at {brand}, {A}. I prefer {brand2}.
Do they make a {food} too, {B}?|Can they make a {food} at {brand2}, {B}?
They do, {A}, for {amount}. I will pay for it.|Yes, {A}. It costs {amount} and I will pay.
{A} and {B} will order a {food} at {brand2} and {B} will pay {amount}.

My {vehicle} to {town} leaves at {hour} on {day}, {B}.|I take the {vehicle} to {town} at {hour} on {day}, {B}.
How long does the {vehicle} take, {A}? {first} says it is slow.|Is it a long way, {A}? {first} never goes there.
It takes {span} hours, {B}. Will you meet me?|After {span} hours I am there, {B}. Can you fetch me?
Sure, {A}, I will be there with {first2}.|Yes, {A}, {first2} and I will wait for you.
{B} and {first2} will meet {A} in {town} at {arrival} on {day}.
Is that the {vehicle} of {first}, {A}?|{first} takes that {vehicle} too, {A}. Do you know that?
No, {first} goes to {town2}. Mine takes {span} hours, {B}.|{first} left for {town2}, {B}. I need {span} hours.
Then call me from the {place}, {A}.|Good, {A}. Wait for me at the {place}.
{A} will be in {town} at {arrival} on {day} and call {B} from the {place}.

I want {number} tickets for the {event} of {first}, {B}.|\
Let us buy {number} tickets for the {event} of {first}, {B}.
One costs {price} crowns, {A}. {first2} paid {amount} for a {thing}.|They are {price} crowns each at {brand}, {A}.
Fine, {B}, I will get all {number} on {day}.|That is cheap, {B}. I buy the {number} of them on {day}.
Thank you, {A}! I will be at the {place} at {time}.|Great, {A}! Come to the {place} at {time} then.
{A} will pay {total} crowns for {number} tickets and meet {B} at the {place} at {time}.
No, {A}, they are {price} crowns each. I have {amount}.|At {price} crowns each, {A}? I just have {amount}.
{first2} will pay for all {number} of them, {B}.|Do not worry, {B}. {first2} will pay the {number} tickets.
Then {first2} is very kind, {A}. See you on {day}!|How nice of {first2}, {A}. I will come on {day}.
{first2} will pay {total} crowns for {number} tickets and {B} will come on {day}.
"""
SCENARIOS = tuple(tuple(block.splitlines()) for block in _SCENARIOS.strip().split("\n\n"))

_SLOT = re.compile(r"\{(\w+?)(\d?)\}")
_SPEAKER = re.compile(r"^[A-Z][a-z]+: ")


def sentences(text: str) -> list[str]:
    """The units of a text that two data sets may not share.

    The units of a dialogue are its utterances, whole and without the speaker's name. Other text is split into
    sentences.
    """
    units: list[str] = []
    for line in text.splitlines():
        utterance = _SPEAKER.sub("", line)
        units += re.split(r"(?<=\.) ", line) if utterance == line else [utterance]
    return units


def squad_json(seed: int, paragraphs: int, forbidden: Set[str] = frozenset()) -> dict[str, Any]:
    """Draws paragraphs with three or four questions each, in the format of SQuAD 1.1.

    Args:
        seed: the seed of all draws.
        paragraphs: how many paragraphs to draw.
        forbidden: units, as `sentences` gives them, that no paragraph may contain.

    Raises:
        ValueError: too much is forbidden.
    """
    rng = random.Random(seed)
    drawn = []
    for number in range(paragraphs):
        context, asked = _until(lambda: _paragraph(rng), lambda drawn: drawn[0], forbidden)
        qas = [
            {
                "id": f"{seed}-{number}-{k}",
                "question": question,
                "answers": [{"text": answer, "answer_start": context.index(answer)}],
            }
            for k, (question, answer) in enumerate(asked)
        ]
        drawn.append({"context": context, "qas": qas})
    return {"version": "1.1", "data": [{"title": "Made-up text", "paragraphs": drawn}]}


def samsum_rows(seed: int, dialogues: int, forbidden: Set[str] = frozenset()) -> list[dict[str, str]]:
    """Draws dialogues with their summaries, as rows of SamSum.

    Args:
        seed: the seed of all draws.
        dialogues: how many dialogues to draw.
        forbidden: units, as `sentences` gives them, that no dialogue or summary may contain.

    Raises:
        ValueError: too much is forbidden.
    """
    rng = random.Random(seed)
    rows = []
    for number in range(dialogues):
        dialogue, summary = _until(lambda: _dialogue(rng), "\n".join, forbidden)
        rows.append({"id": f"{seed}-{number}", "dialogue": dialogue, "summary": summary})
    return rows


def _until(
    draw: Callable[[], _Text | None], text: Callable[[_Text], str], forbidden: Set[str], tries: int = 10_000
) -> _Text:
    """Draws until the draw succeeds and its text contains nothing forbidden."""
    for _ in range(tries):
        drawn = draw()
        if drawn is not None and forbidden.isdisjoint(sentences(text(drawn))):
            return drawn
    raise ValueError(f"{tries} draws in a row contained something forbidden; forbid less")


def _value(rng: random.Random, kind: str, used: set[str]) -> str:
    """Draws a word or phrase of a kind. None of its words is in `used`, which they are added to."""
    if kind in COMPOSED:
        return _SLOT.sub(lambda slot: _value(rng, slot[1], used), COMPOSED[kind])
    while (value := rng.choice(WORDS[kind])) in used:
        pass
    used.add(value)
    return value


def _wording(rng: random.Random, wordings: str) -> str:
    """Draws one of the wordings that "|" separates."""
    return rng.choice(wordings.split("|"))


def _paragraph(rng: random.Random) -> tuple[str, list[tuple[str, str]]] | None:
    """Draws a context with its questions and answers; None if it is too long, too short or ambiguous."""
    topic = rng.choice(TOPICS)
    facts = rng.sample(topic.facts, 5)
    half = len(facts) // 2
    # Each fact is told of one of two entities. Two facts may be of one kind, so that the kind asked for does not
    # always give the answer away; in 15 % of the paragraphs one fact is told of both.
    dealt = [facts[:half], facts[half:]]
    if rng.random() < 0.15:
        dealt[0] = [*dealt[0], dealt[1][0]]
    used: set[str] = set()
    names = [_SLOT.sub(lambda slot: _value(rng, slot[1], used), topic.name) for _ in dealt]
    told = [
        (name, fact, _value(rng, fact.kind, used)) for name, own in zip(names, dealt, strict=True) for fact in own
    ]
    rng.shuffle(told)

    parts = []
    questions = []
    for name, fact, value in told:
        subject = topic.article + name
        part = f"{subject} {_wording(rng, fact.says).format(value)}."
        parts.append(part[0].upper() + part[1:])
        if fact.inverse and rng.random() < 0.03:
            questions.append((_wording(rng, fact.inverse).format(value), name))
        else:
            questions.append((_wording(rng, fact.asks).format(subject), value))
    context = " ".join(parts)
    asked = rng.sample(questions, rng.choice((3, 4)))
    clear = all(context.count(answer) == 1 or answer in names for _, answer in asked)
    return (context, asked) if clear and 25 <= len(context.split()) <= 45 else None


def _dialogue(rng: random.Random) -> tuple[str, str] | None:
    """Draws a dialogue and its summary; None if the dialogue is too long or too short."""
    opening, *outcomes = rng.choice(SCENARIOS)
    start = rng.randrange(0, len(outcomes), 4)
    *replies, summary = outcomes[start : start + 4]
    talk = _SMALL_TALK if rng.random() < 0.4 else ()
    lines = [_wording(rng, line) for line in (*talk, opening, *replies)]
    template = "\n".join(f"{{{'AB'[i % 2]}}}: {line}" for i, line in enumerate(lines))
    used: set[str] = set()
    slots: dict[str, str] = {}
    for slot in _SLOT.finditer(template):
        if slot[0] not in slots:
            slots[slot[0]] = _value(rng, "first" if slot[1] in "AB" else slot[1], used)
    slots |= _worked_out(slots)
    dialogue, summary = (_SLOT.sub(lambda slot: slots[slot[0]], text) for text in (template, summary))
    return (dialogue, summary) if 35 <= len(dialogue.split()) <= 60 else None


def _worked_out(slots: Mapping[str, str]) -> dict[str, str]:
    """The slots of a summary whose values are in no utterance: an arrival after some hours, and a total price."""
    hours = WORDS["hour"]
    if "{span}" in slots:
        return {"{arrival}": hours[(hours.index(slots["{hour}"]) + 1 + hours.index(slots["{span}"])) % len(hours)]}
    if "{price}" in slots:
        return {"{total}": str((hours.index(slots["{number}"]) + 1) * int(slots["{price}"]))}
    return {}
