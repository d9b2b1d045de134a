"""What kinds of rooms hold: their programmes, and what lies on which furniture."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Programme:
    """How many of each class a kind of room has, (fewest, most); large things first.

    Args:
        weight: How often this kind of room occurs, against the others.
        walls: Stands with its back to a wall.
        middle: Stands in the room and brings companions (chairs around a table).
        hung: Hangs on the walls.
        floor: Stands about.
    """

    weight: float
    walls: dict[str, tuple[int, int]]
    middle: dict[str, tuple[int, int]]
    hung: dict[str, tuple[int, int]]
    floor: dict[str, tuple[int, int]]


def _counts(text: str) -> dict[str, tuple[int, int]]:
    """`"couch 1-2; bookshelf 0-2"` as a table."""
    entries = (entry.strip().rpartition(" ") for entry in text.split(";"))
    return {name: tuple(int(number) for number in counts.split("-")) for name, _, counts in entries}


PROGRAMMES = {
    "living room": Programme(
        weight=4,
        walls=_counts(
            "couch 1-2; tv stand 0-1; bookshelf 0-2; cabinet 0-1; piano 0-1; desk 0-1; radiator 0-1; shelf 0-1; "
            "fireplace 0-1; bench 0-1; guitar 0-1"
        ),
        middle=_counts("armchair 0-2; coffee table 0-1; table 0-1; piano 0-1; ottoman 0-1; end table 0-2"),
        hung=_counts("picture 1-4; window 0-2; clock 0-1; curtain 0-2; light 0-1; tv 0-1"),
        floor=_counts("plant 0-2; lamp 0-2; box 0-1; mat 0-1"),
    ),
    "bedroom": Programme(
        weight=3,
        walls=_counts(
            "bed 1-2; wardrobe 0-1; dresser 0-1; desk 0-1; nightstand 0-1; cabinet 0-1; bookshelf 0-1; shelf 0-1; "
            "radiator 0-1; furniture 0-1"
        ),
        middle=_counts("armchair 0-1; chair 0-1; stool 0-1"),
        hung=_counts("picture 0-3; poster 0-2; window 0-1; curtain 0-2; clock 0-1"),
        floor=_counts(
            "box 0-2; mat 0-1; lamp 0-1; plant 0-1; suitcase 0-1; trash can 0-1; clothes 0-1; laundry basket 0-1"
        ),
    ),
    "office": Programme(
        weight=4,
        walls=_counts(
            "desk 1-3; bookshelf 0-2; file cabinet 0-2; cabinet 0-1; shelf 0-1; radiator 0-1; whiteboard 0-1; couch "
            "0-1; water cooler 0-1; ladder 0-1"
        ),
        middle=_counts("table 0-2; armchair 0-1"),
        hung=_counts("whiteboard 0-1; poster 0-2; picture 0-2; window 0-2; clock 0-1; sign 0-1"),
        floor=_counts("trash can 0-2; box 0-3; plant 0-1; fire extinguisher 0-1; chair 0-2; recycling bin 0-1"),
    ),
    "kitchen": Programme(
        weight=2,
        walls=_counts(
            "kitchen cabinet 2-5; refrigerator 0-1; oven 0-1; stove 0-1; sink 0-1; cabinet 0-1; washing machine 0-1; "
            "radiator 0-1; shelf 0-1"
        ),
        middle=_counts("table 1-1; stool 0-2; chair 0-1"),
        hung=_counts("kitchen cabinet 0-3; range hood 0-1; window 0-1; picture 0-2; clock 0-1; towel 0-1"),
        floor=_counts("trash can 0-1; box 0-1; plant 0-1; crate 0-1; recycling bin 0-1"),
    ),
    "bathroom": Programme(
        weight=1,
        walls=_counts(
            "toilet 1-1; sink 0-1; bathroom vanity 0-1; bathtub 0-1; shower 0-1; washing machine 0-1; clothes dryer "
            "0-1; cabinet 0-1; radiator 0-1; shelf 0-1"
        ),
        middle=_counts("stool 0-1; toilet 0-1"),
        hung=_counts(
            "towel 1-3; rack 0-1; toilet paper dispenser 0-1; shower head 0-1; window 0-1; light 0-1; picture 0-1; "
            "shower curtain 0-1"
        ),
        floor=_counts("trash can 0-1; mat 0-1; laundry basket 0-1; plant 0-1; box 0-1"),
    ),
    "storage": Programme(
        weight=1.5,
        walls=_counts(
            "shelf 0-2; bookshelf 1-2; cabinet 0-2; wardrobe 0-1; file cabinet 0-1; desk 0-1; washing machine 0-1; "
            "bench 0-1; radiator 0-1; storage container 0-1; rack 0-1; furniture 0-1"
        ),
        middle=_counts("table 0-1; chair 0-2; folded chair 0-1; stool 0-1"),
        hung=_counts("poster 0-2; picture 0-1; clock 0-1; sign 0-1; window 0-1"),
        floor=_counts(
            "box 2-6; crate 0-2; container 0-1; bicycle 0-1; fire extinguisher 0-1; suitcase 0-1; furniture 0-1; "
            "cart 0-1; trash can 0-1; lamp 0-1"
        ),
    ),
}


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(";"))


_HOUSEHOLD = _names("book; decoration; potted plant; plant; lamp; box; speaker; clock; candle; stuffed animal; object")
_DESK = _names(
    "book; cup; lamp; telephone; calendar; speaker; box; bottle; object; headphones; printer; fan; laptop; paper; tray"
)
_DINING = _names("cup; bowl; bottle; plate; book; laptop; potted plant; decoration; object; tray; candle; box; hat")
_KITCHEN = _names(
    "microwave; toaster; coffee maker; coffee kettle; bottle; bowl; cup; box; machine; scale; object; rack; paper "
    "towel roll; stove"
)
_SEAT = _names("pillow; book; purse; bag; stuffed animal; hat; towel; clothes")
# class of the furniture: (most pieces on it, classes of which each is drawn)
ON_TOP_OF: dict[str, tuple[int, tuple[str, ...]]] = {
    "bed": (4, ("pillow", *_SEAT)),
    "couch": (4, ("pillow", "pillow", *_SEAT)),
    "armchair": (1, _SEAT),
    "chair": (1, _SEAT),
    "desk": (6, _DESK),
    "table": (5, _DINING),
    "coffee table": (4, (*_DINING, "book")),
    "end table": (2, _HOUSEHOLD),
    "nightstand": (2, _HOUSEHOLD),
    "tv stand": (3, _HOUSEHOLD),
    "cabinet": (4, _HOUSEHOLD),
    "dresser": (4, _HOUSEHOLD),
    "bookshelf": (10, ("book", "book", *_HOUSEHOLD)),
    "shelf": (8, ("book", *_HOUSEHOLD)),
    "piano": (2, _HOUSEHOLD),
    "file cabinet": (2, ("box", "printer", "book", "potted plant", "fan")),
    "kitchen cabinet": (3, _KITCHEN),
    "refrigerator": (1, ("box", "bowl", "basket")),
    "oven": (1, _KITCHEN),
    "washing machine": (2, ("box", "towel", "bottle")),
    "bench": (1, _SEAT),
    "wardrobe": (1, ("box", "suitcase", "bag")),
    "box": (1, ("box", "book", "object")),
    "bathroom vanity": (2, ("bottle", "cup", "object")),
    "storage container": (1, ("box",)),
    "crate": (1, ("box", "object")),
    "rack": (3, ("box", "book", "object", "bottle")),
}
FLOOR_CLUTTER = _names("shoe; bag; backpack; purse; ball; book; box; stuffed animal; speaker; fan; object; hat")
# They face the way the furniture below them does.
ALIGNED = _names("monitor; tv; keyboard; laptop; microwave; printer; coffee maker; speaker; machine; oven")
# They stand next to each other along a wall.
SIDE_BY_SIDE = _names("kitchen cabinet; refrigerator; oven; stove; sink; washing machine; clothes dryer; file cabinet")
