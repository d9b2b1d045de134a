"""What a catalogue's model is (its ScanNet200 name) and where it may stand.

The catalogues name models in free English; the table below gives the ScanNet200 class and the placement of the names
that occur in the five Sweet Home 3D libraries. Small things without a class become "object"; the rest is not used.
"""

from .catalog import FurnitureModel


AGAINST_WALL = "against wall"  # stands on the floor, its back to a wall
FREE = "free"  # stands on the floor, anywhere
ON_TOP = "on top"  # stands on furniture, small ones on the floor now and then
WALL = "wall"  # hangs on a wall at its elevation
CEILING = "ceiling"

# placement: class: names in the catalogue, lower case
_TABLE = {
    AGAINST_WALL: {
        "couch": "sofa; couch; corner sofa; winchester sofa; futon couch; clear sofa; burlap sofa; sofa 2 seats; "
        "sofa 3 seats; convertible sofa bz; rattan sofa",
        "bed": "bed; child bed; baby bed; iron bed; crib; bunk bed; captain's bed; day bed; hospital bed; "
        "opened convertible sofa bz",
        "nightstand": "bedside table",
        "bookshelf": "bookcase; full bookcase",
        "shelf": "shelves; vertical shelves",
        "cabinet": "cupboard; chest",
        "dresser": "dresser with drawers; dressing table; changing table",
        "kitchen cabinet": "drawers cabinet; high cabinet; island extension; lower cabinet; lower corner cabinet; "
        "small lower cabinet; island",
        "file cabinet": "filing cabinet",
        "wardrobe": "wardrobe",
        "tv stand": "television cabinet; tv stand; contemporary living room",
        "desk": "desk; technical table; desk table; wooden desk",
        "refrigerator": "refrigerator; large fridge; fridge",
        "oven": "double oven; oven; small oven",
        "stove": "large stove; propane stove",
        "sink": "sink cabinet; washbasin; sink; small lavatory",
        "bathroom vanity": "vanity; double vanity",
        "bathtub": "bath; corner bathtub; island bath",
        "shower": "shower stall",
        "washing machine": "washing machine; clothes washing machine",
        "clothes dryer": "dryer machine",
        "radiator": "radiator",
        "piano": "upright piano",
        "fireplace": "fireplace",
        "whiteboard": "white board",
        "bench": "bench; piano bench; painted bench",
        "door": "door; exterior door; glass door; screen door; double door; double door with panes",
        "storage container": "safe; chest freezer",
        "water cooler": "water cooler",
        "rack": "workbench",
        "toilet": "toilets unit; urinal",
        "ladder": "step ladder; small step ladder",
        "guitar": "electric guitar",
        "furniture": "locked locker",
    },
    FREE: {
        "chair": "chair; oak chair; relax chair; chair with cushion; osaka chair; plastic chair; cafe chair; "
        "child chair; deck chair; children chair; ryokan chair; class seat; teck chair",
        "folded chair": "folding chair",
        "armchair": "armchair; winchester armchair; modern armchair; rattan armchair; armchair ottoman",
        "office chair": "office chair",
        "stool": "stool; bar stool; bar chair",
        "table": "table; oak table; round table; table with tablecloth; folding table; glass table; cafe table; "
        "wooden table; wooden alder table; wooden teak table; table on trestles; black table; children table; "
        "bar table; pool table; football table; table tennis; rattan table",
        "coffee table": "coffee table",
        "ottoman": "puff",
        "plant": "decorative plant; plant; indoor plant; yucca; ficus; spathiphyllum",
        "piano": "grand piano",
        "trash can": "dustbin; bullet trash can; residential trashcan; park trashcan",
        "recycling bin": "recycling bin",
        "laundry basket": "clothes basket",
        "fire extinguisher": "extinguisher",
        "suitcase": "suitcase; trunck",
        "bicycle": "indoor bike; bike; bicycle",
        "mat": "oriental rug; round carpet; tatami; doormat; bathmat",
        "mattress": "futon; air mattress",
        "person": "female; male; holding male; holding female; boy; girl",
        "toilet": "bidet; potty",
        "container": "barrel",
        "crate": "crate",
        "box": "box; cardboard box; open cardboard box",
        "clothes": "clothes rack; hanging clothes",
        "rack": "clothes horse",
        "cart": "shopping basket; stroller",
        "divider": "screen",
        "lamp": "japanese lantern",
        "seat": "baby high chair",
        "furniture": "treadmill; abdominal bench; doll house; punching ball; stone lantern; wheelchair",
    },
    ON_TOP: {
        "lamp": "desk lamp; lamp; little lamp; pedestal vase lamp; camping lamp",
        "tv": "tv; tv 16:9",
        "monitor": "apple imac 1998; apple imac 2004",
        "laptop": "laptop; apple ibook",
        "speaker": "speaker; mini stereo; mp3 station; mp3 base; radio; stereo amplifier",
        "fan": "table fan; rigged fan",
        "plant": "flower box; plant box; bamboo; spider plant; tulips; white lily; bonsai tree; flowers; "
        "succulent plant; christmas tree",
        "potted plant": "little plant; cactus; orchids",
        "stuffed animal": "teddy bear; doll; rabbit; cat; bulldog; siamese cat; dog",
        "backpack": "backpack",
        "bag": "briefcase",
        "purse": "handbag",
        "box": "gift; bread box",
        "book": "book",
        "microwave": "microwave",
        "toaster": "toaster; sandwich maker",
        "coffee maker": "coffee brewer; coffee machine; coffee maker; coffee press",
        "coffee kettle": "espresso kettle; boiler; teapot",
        "machine": "mixer; blender; cooker; deep fryer; squeezer",
        "printer": "inkjet printer and scanner",
        "projector": "video projector",
        "telephone": "phone; wireless phone; apple iphone; mobile phone",
        "keyboard piano": "keyboard; xylophone",
        "bottle": "baby bottle; yogurt bottle; beer bottle; wine bottle; bottle; medicine bottle; flacon; milk; "
        "spray bottle; oil servers",
        "cup": "coffee cup; plastic cup; beer glass; glass; cup; coffee mug; cocktail glass; creamer",
        "bowl": "bowl; bowl with fruits; bowl with salad; basin",
        "plate": "plate; oval plate; plate, glass and cutlery; plate, glasses and cutlery",
        "tray": "tray; sushi tray; letter tray",
        "decoration": "vase; pottery; old jar; chicken; biplane; rocking horse; deer; wood toy; car model; toy train; "
        "frame chambord; aquarium",
        "candle": "candle",
        "clock": "clock",
        "calendar": "calendar",
        "headphones": "headphones",
        "shoe": "slippers; bootie; sneakers; woman shoes; mocassin",
        "hat": "cap; hat; helmet",
        "ball": "basketball; soccer ball",
        "towel": "towel",
        "clothes": "folded clothes",
        "stove": "cooktop; stove; induction cooker 4 zones",
        "scale": "kitchen scale; electronic scale",
        "rack": "knife stand; kitchen tools",
        "paper towel roll": "paper towel holder",
        "light": "flashlight",
    },
    WALL: {
        "kitchen cabinet": "glass door cabinet; small upper cabinet; upper cabinet; upper corner cabinet; "
        "upper shelves cabinet",
        "range hood": "range hood; hood",
        "clock": "cuckoo clock",
        "sign": "emergency sign",
        "light": "wall light; wall spotlight; porch light; wall lamp artwork; fluorescent strip",
        "rack": "towel rack; wall hanger",
        "shower head": "shower head and faucet",
        "toilet paper dispenser": "toilet paper dispenser",
        "tv": "wall flat tv",
        "window": "double-hung window; turn window; double window with large pane; double window 4 panes; "
        "double window 3 panes",
        "blinds": "window blind",
        "curtain": "curtain",
        "shower curtain": "shower curtain",
        "decoration": "dart game",
        "vent": "air conditioning - internal unit",
        "machine": "electric water heater; gaz water heater",
        "object": "number lock",
    },
    CEILING: {
        "fan": "ceiling fan",
        "lamp": "chandelier lamp; pendant lamp; hanging light",
        "ceiling light": "ceiling lamp; fluorescent light; track lights",
    },
}
_TALL = 1.0
_SKIPPED_CATEGORIES = ("Vehicles", "Exterior", "Staircases", "Doors and windows", "Characters")
_MAX_CLUTTER = 0.5

RULES = {
    name.strip(): (class_name, placement)
    for placement, classes in _TABLE.items()
    for class_name, names in classes.items()
    for name in names.split(";")
    if name.strip()
}


def classify(model: FurnitureModel) -> tuple[str, str] | None:
    """ScanNet200 name and placement of a model, or None where it has no place in a room."""
    name = model.name.lower()
    width, depth, height = model.size
    if max(width, depth) > 3.6 or height > 2.4:
        return None
    if name in ("lamp", "outdoor lamp") and model.elevation > 1.5:
        return "lamp", CEILING
    if name == "lamp" and height > _TALL:
        return "lamp", FREE
    if name == "box" and height > _TALL:
        return "cabinet", AGAINST_WALL
    if name in RULES:
        return RULES[name]
    if model.category in _SKIPPED_CATEGORIES or model.elevation > 0.2:
        return None
    if max(width, depth, height) <= _MAX_CLUTTER and min(width, depth) > 0.03:
        return "object", ON_TOP
    return None
