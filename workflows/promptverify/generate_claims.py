"""Generate claims like FEVER's, with evidence, about an invented world: `python generate_claims.py > claims.jsonl`.

Every name is a pair of parts. Each pair belongs to only one of two splits: training claims or held-out claims. So the
two splits share words, as any two texts do, but they share no person, town, film, society, country or mountain.
"""

import argparse
import json
import random
from dataclasses import dataclass
from functools import cache
from itertools import product

DISTRACTORS = (0, 0, 0, 1, 1)  # numbers of distracting sentences in the evidence; one is drawn at random
LABELS = ("SUPPORTED", "REFUTED", "NOT ENOUGH INFO")

FIRST_NAMES = """Ada Boris Clara Dario Edith Felix Greta Hugo Irene Jonas Karin Leon Mara Nils Olga Pavel Rosa
Simon Tilda Ulrich Vera Walter Xenia Yusuf Zora Anton Berta Carlos Dora Emil Frida Gustav Helga Ivan Judith
Klaus Linda Marco Nora Oscar""".split()
SURNAMES = """Aldberg Brandt Corvin Dorfeld Ellgate Fenwick Galmont Harridge Iverson Jorstead Kelden Lindholm
Morwick Norcroft Ostberg Pelham Quist Rosgate Selmont Tarfeld Ulden Vanholm Westrup Yelland Zander Aspen Birk
Calder Dunmore Eklund Foss Gilmour Hallam Irving Jessen Kramer Langley Mercer Nolan Orwell""".split()
PLACES = """Amaro Belenza Casola Deluna Erith Faloria Gorath Imyth Jasiva Karesk Lamora Mirano Nessa Orlu Pavia
Quiron Relith Sorona Tamuz Ulvar Vesna Wilmar Yarrow Zelica Arden Brisa Corda Drava Elbin Fiume Gresk Hanora
Istra Jurma Kolva Lorca""".split()
ADJECTIVES = """Silent Broken Golden Hidden Crimson Distant Burning Frozen Hollow Last Lonely Midnight Painted
Restless Scarlet Secret Shining Stolen Velvet Wandering""".split()
NOUNS = """Harbour Garden Bridge Mirror Letter River Orchard Lantern Winter Summer Castle Train Island Window
Forest Promise Shadow Violin Station Carnival Desert Compass Voyage Kingdom""".split()

NAME_PARTS = {
    "person": (FIRST_NAMES, SURNAMES),
    "town": ("Port North Saint New Upper Lake East Fort Old Bad".split(), PLACES),
    "film": ([f"The {adjective}" for adjective in ADJECTIVES], NOUNS),
    "society": (SURNAMES, "Society Institute Orchestra Guild Academy Club Museum League".split()),
    "country": ("Republic Kingdom Duchy Union Province Commonwealth".split(), [f"of {p}" for p in PLACES]),
    "mountain": ("Mount Peak Cape Pico Monte".split(), SURNAMES),
}
COMMON_VALUES = {  # values that are not names, so both splits may use them
    "year": [str(year) for year in range(1960, 2000)],
    "height": [f"{metres} metres" for metres in range(1000, 9000, 400)],
    "occupation": """painter chemist novelist violinist lawyer sailor botanist surgeon composer geologist poet
boxer photographer historian sculptor pilot baker carpenter tailor dentist""".split(),
    "currency": "crown dollar florin franc guilder mark peso pound rand rupee shilling thaler".split(),
}
GENERIC_WORDS = {"The", "of", "metres"}


@dataclass(frozen=True)
class Relation:
    """One kind of fact: the kind of its subject, the kind of its value, and sentences for claims and for evidence."""

    name: str
    subject: str
    value: str
    claims: tuple[str, ...]
    evidence: tuple[str, ...]


RELATIONS = (
    Relation("birthplace", "person", "town",
             ("{s} was born in {v}.", "{v} is the birthplace of {s}."),
             ("{s} was born in {v}.", "{s} is a native of {v}.", "Born in {v}, {s} moved abroad later.")),
    Relation("birth-year", "person", "year",
             ("{s} was born in the year {v}.", "The birth year of {s} is {v}."),
             ("{s} (born {v}) has two sisters.", "In {v} {s} came into the world.")),
    Relation("occupation", "person", "occupation",
             ("{s} worked as a {v}.", "{s} was a {v} by profession."),
             ("{s} earned a living as a {v}.", "{s} was known as a gifted {v}.")),
    Relation("employer", "person", "society",
             ("{s} spent a whole career at the {v}.", "The {v} was the only employer of {s}."),
             ("{s} never worked anywhere but at the {v}.", "From school to old age the {v} employed {s}.")),
    Relation("director", "film", "person",
             ("{s} was directed by {v}.", "{v} is the director of {s}."),
             ("{v} directed {s}.", "{s} is a film by {v}.", "{s}, made by {v}, won a prize.")),
    Relation("release-year", "film", "year",
             ("{s} was released in {v}.", "{s} came out in {v}."),
             ("{s} reached cinemas in {v}.", "In {v} the public first saw {s}.")),
    Relation("setting", "film", "town",
             ("{s} is set in {v}.", "The story of {s} takes place in {v}."),
             ("{s} plays out in the streets of {v}.", "{v} is the scene of {s}.")),
    Relation("capital", "country", "town",
             ("The capital of the {s} is {v}.", "{v} is the capital of the {s}."),
             ("The {s} is governed from {v}.", "{v} is the seat of government of the {s}.")),
    Relation("currency", "country", "currency",
             ("The currency of the {s} is the {v}.", "The {s} uses the {v} as its currency."),
             ("Prices in the {s} are given in the {v}.", "The {v} is legal tender in the {s}.")),
    Relation("height", "mountain", "height",
             ("{s} is {v} high.", "The height of {s} is {v}."),
             ("{s} rises to {v}.", "At {v}, {s} dominates the valley.")),
    Relation("first-ascent", "mountain", "year",
             ("{s} was first climbed in {v}.", "The first ascent of {s} was in {v}."),
             ("Nobody had reached the top of {s} before {v}.", "In {v} a party stood on {s} at last.")),
    Relation("seat", "society", "town",
             ("The {s} is based in {v}.", "The {s} has its seat in {v}."),
             ("The {s} owns a house in {v}, its only office.", "Visitors find the {s} in {v}.")),
    Relation("founder", "society", "person",
             ("The {s} was founded by {v}.", "{v} founded the {s}."),
             ("{v} set up the {s}.", "The {s} goes back to {v}.")),
)  # fmt: skip


@cache
def names(kind: str, held_out: bool) -> list[str]:
    """Return the names of a kind in one split.

    The pairs of parts form a table. The held-out names are every eighth diagonal, so each part is in both splits.
    """
    firsts, seconds = NAME_PARTS[kind]
    pairs = product(enumerate(firsts), enumerate(seconds))
    return [f"{a} {b}" for (i, a), (j, b) in pairs if ((i + j) % 8 == 0) == held_out]


for _kind in NAME_PARTS:
    assert not set(names(_kind, True)) & set(names(_kind, False)), f"a {_kind} is in both splits"


class Claims:
    """A generator of random examples from one split of the names."""

    def __init__(self, seed: int, held_out: bool):
        self.random = random.Random(seed)
        self.held_out = held_out

    def draw(self, kind: str, other_than: str = "") -> str:
        """Return a random value or name of a kind. It shares no word, such as "Port" or "Casola", with `other_than`."""
        pool = COMMON_VALUES.get(kind) or names(kind, self.held_out)
        taken = set(other_than.split()) - GENERIC_WORDS
        while taken & set((drawn := self.random.choice(pool)).split()):
            pass
        return drawn

    def sentence(self, relation: Relation, subject: str, value: str | None = None) -> str:
        value = value or self.draw(relation.value)
        return self.random.choice(relation.evidence).format(s=subject, v=value)

    def relation_of(self, kind: str, other_than: Relation) -> Relation:
        return self.random.choice([r for r in RELATIONS if r.subject == kind and r is not other_than])

    def deciding(self, label: str, relation: Relation, subject: str, value: str) -> str:
        """Return the sentence of evidence that makes the label right. The claim alone does not reveal the label."""
        if label == "SUPPORTED":
            return self.sentence(relation, subject, value)
        if label == "REFUTED":
            return self.sentence(relation, subject, self.draw(relation.value, other_than=value))
        if self.random.random() < 0.5:
            return self.sentence(self.relation_of(relation.subject, other_than=relation), subject)
        stranger = self.draw(relation.subject, other_than=subject)
        return self.sentence(relation, stranger, self.random.choice([value, None]))

    def distractor(self, relation: Relation, subject: str) -> str:
        """Return a sentence with a different fact about the subject, or with a fact about a different subject."""
        other = self.relation_of(relation.subject, other_than=relation)
        if self.random.random() < 0.5:
            return self.sentence(other, subject)
        return self.sentence(self.random.choice([relation, other]), self.draw(relation.subject, subject))

    def example(self, label: str, distractors: int) -> dict[str, str]:
        relation = self.random.choice(RELATIONS)
        subject, value = self.draw(relation.subject), self.draw(relation.value)
        sentences = [self.deciding(label, relation, subject, value)]
        sentences += [self.distractor(relation, subject) for _ in range(distractors)]
        self.random.shuffle(sentences)
        claim = self.random.choice(relation.claims).format(s=subject, v=value)
        return {"relation": relation.name, "claim": claim, "evidence": " ".join(sentences), "label": label}

    def bare(self, label: str) -> dict[str, str]:
        """Return an example whose claim and evidence are one name each.

        The evidence is the claim's name, a different name of the same kind, or a name of a different kind.
        """
        kind, other_kind = self.random.sample([*NAME_PARTS, *COMMON_VALUES], 2)
        name = self.draw(kind)
        evidence = {"SUPPORTED": name, "REFUTED": self.draw(kind, name), "NOT ENOUGH INFO": self.draw(other_kind)}
        return {"claim": f"{name}.", "evidence": f"{evidence[label]}.", "label": label}

    def labels(self, count: int) -> list[str]:
        """Return `count` labels in random order, with the same number of each if possible."""
        labels = [LABELS[number % len(LABELS)] for number in range(count)]
        self.random.shuffle(labels)
        return labels

    def lesson(self, name: str, count: int) -> list[dict[str, str]]:
        """Return `count` examples of a lesson.

        Args:
            name: "names" (names without sentences), "sentence" (one sentence of evidence) or "claims" (some examples
                also have a distracting sentence).
        """
        return [self.bare(label) if name == "names"
                else self.example(label, 0 if name == "sentence" else self.random.choice(DISTRACTORS))
                for label in self.labels(count)]  # fmt: skip


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--count", type=int, default=3000)
    arguments.add_argument("--seed", type=int, default=2024)
    arguments = arguments.parse_args()
    claims = Claims(arguments.seed, held_out=True)
    for number, example in enumerate(claims.lesson("claims", arguments.count)):
        custom_id = f"{example.pop('relation')}-{number:04d}"
        print(json.dumps({"custom_id": custom_id, **example}))


if __name__ == "__main__":
    main()
