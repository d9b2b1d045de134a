"""The 200 classes of ScanNet200: names, ids of the raw annotation, frequency splits, and the order used here.

Source: D. Rozenberszki, O. Litany, A. Dai, "Language-Grounded Indoor 3D Semantic Segmentation in the Wild" (ECCV 2022)
and the class lists published with the ScanNet benchmark.

The order is the benchmark's with its indices 1 and 2 exchanged, so that the two "stuff" classes come first: 0 wall,
1 floor, 2 chair, 3 table, ... ESAM's ScanNet200 checkpoints use the same order. Frames mark an unlabelled pixel by -1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


SPLIT_NAMES = ("head", "common", "tail")


@dataclass(frozen=True)
class ScanNet200Class:
    """One class.

    Args:
        name: Its name in the benchmark.
        raw_id: Its id in the raw annotation (column `id` of `scannetv2-labels.combined.tsv`; `label-filt` images).
        split: Frequency group: "head", "common" or "tail".
        official_index: Its place (0..199) in the benchmark's own order.
    """

    name: str
    raw_id: int
    split: str
    official_index: int


# One line a class, in the order of this project: raw id, split, name.
_TABLE = """
   1 head   wall
   3 head   floor
   2 head   chair
   4 head   table
   5 head   door
   6 head   couch
   7 head   cabinet
   8 head   shelf
   9 head   desk
  10 head   office chair
  11 head   bed
  13 head   pillow
  14 head   sink
  15 head   picture
  16 head   window
  17 head   toilet
  18 head   bookshelf
  19 head   monitor
  21 head   curtain
  22 head   book
  23 head   armchair
  24 head   coffee table
  26 head   box
  27 head   refrigerator
  28 head   lamp
  29 head   kitchen cabinet
  31 head   towel
  32 head   clothes
  33 head   tv
  34 head   nightstand
  35 head   counter
  36 head   dresser
  38 head   stool
  39 common cushion
  40 head   plant
  41 head   ceiling
  42 head   bathtub
  44 common end table
  45 common dining table
  46 common keyboard
  47 common bag
  48 head   backpack
  49 common toilet paper
  50 common printer
  51 head   tv stand
  52 head   whiteboard
  54 common blanket
  55 head   shower curtain
  56 head   trash can
  57 head   closet
  58 head   stairs
  59 common microwave
  62 head   stove
  63 common shoe
  64 common computer tower
  65 common bottle
  66 common bin
  67 common ottoman
  68 common bench
  69 head   board
  70 head   washing machine
  71 head   mirror
  72 head   copier
  73 common basket
  74 head   sofa chair
  75 head   file cabinet
  76 common fan
  77 common laptop
  78 head   shower
  79 tail   paper
  80 common person
  82 common paper towel dispenser
  84 common oven
  86 head   blinds
  87 common rack
  88 tail   plate
  89 head   blackboard
  90 common piano
  93 common suitcase
  95 common rail
  96 head   radiator
  97 head   recycling bin
  98 common container
  99 head   wardrobe
 100 tail   soap dispenser
 101 common telephone
 102 tail   bucket
 103 tail   clock
 104 common stand
 105 common light
 106 common laundry basket
 107 common pipe
 110 head   clothes dryer
 112 tail   guitar
 115 tail   toilet paper holder
 116 common seat
 118 tail   speaker
 120 common column
 121 common bicycle
 122 common ladder
 125 head   bathroom stall
 128 head   shower wall
 130 tail   cup
 131 common jacket
 132 common storage bin
 134 common coffee maker
 136 common dishwasher
 138 tail   paper towel roll
 139 common machine
 140 common mat
 141 common windowsill
 145 tail   bar
 148 tail   toaster
 154 common bulletin board
 155 tail   ironing board
 156 common fireplace
 157 tail   soap dish
 159 head   kitchen counter
 161 head   doorframe
 163 tail   toilet paper dispenser
 165 common mini fridge
 166 tail   fire extinguisher
 168 tail   ball
 169 tail   hat
 170 tail   shower curtain rod
 177 common water cooler
 180 tail   paper cutter
 185 tail   tray
 188 common shower door
 191 common pillar
 193 common ledge
 195 tail   toaster oven
 202 tail   mouse
 208 tail   toilet seat cover dispenser
 213 common furniture
 214 common cart
 221 tail   storage container
 229 tail   scale
 230 tail   tissue box
 232 tail   light switch
 233 tail   crate
 242 tail   power outlet
 250 common decoration
 261 tail   sign
 264 tail   projector
 276 common closet door
 283 common vacuum cleaner
 286 tail   candle
 300 tail   plunger
 304 tail   stuffed animal
 312 tail   headphones
 323 common dish rack
 325 tail   broom
 331 tail   guitar case
 342 common range hood
 356 tail   dustpan
 370 tail   hair dryer
 392 tail   water bottle
 395 tail   handicap bar
 399 tail   purse
 408 tail   vent
 417 tail   shower floor
 488 tail   water pitcher
 540 head   mailbox
 562 tail   bowl
 570 tail   paper bag
 572 tail   alarm clock
 581 tail   music stand
 609 common projector screen
 748 common divider
 776 tail   laundry detergent
1156 common bathroom counter
1163 head   object
1164 head   bathroom vanity
1165 head   closet wall
1166 common laundry hamper
1167 common bathroom stall door
1168 common ceiling light
1169 common trash bin
1170 tail   dumbbell
1171 head   stair rail
1172 tail   tube
1173 common bathroom cabinet
1174 tail   cd case
1175 tail   closet rod
1176 tail   coffee kettle
1178 common structure
1179 tail   shower head
1180 tail   keyboard piano
1181 tail   case of water bottles
1182 tail   coat rack
1183 common storage organizer
1184 tail   folded chair
1185 tail   fire alarm
1186 tail   power strip
1187 tail   calendar
1188 tail   poster
1189 common potted plant
1190 tail   luggage
1191 common mattress
"""


def _parse_table() -> tuple[ScanNet200Class, ...]:
    classes = []
    for index, line in enumerate(_TABLE.strip().splitlines()):
        raw_id, split, name = line.split(maxsplit=2)
        official_index = {1: 2, 2: 1}.get(index, index)
        classes.append(ScanNet200Class(name=name, raw_id=int(raw_id), split=split, official_index=official_index))
    return tuple(classes)


# A pixel, point or superpoint that belongs to no instance, class or superpoint.
NONE = -1
# Semantic label of points that no loss and no metric counts.
IGNORE = -100
SCANNET200: tuple[ScanNet200Class, ...] = _parse_table()
SCANNET200_CLASS_NAMES: tuple[str, ...] = tuple(item.name for item in SCANNET200)
# Wall and floor: no instances. The label of an instance is the class index minus their number.
STUFF_CLASSES: tuple[int, int] = (0, 1)
INSTANCE_CLASS_NAMES: tuple[str, ...] = SCANNET200_CLASS_NAMES[len(STUFF_CLASSES) :]
# Class index -> index in the benchmark's order. The exchange is its own inverse, so this is the way back as well.
OFFICIAL_INDICES: tuple[int, ...] = tuple(item.official_index for item in SCANNET200)
SPLIT_OF_CLASS: dict[str, str] = {item.name: item.split for item in SCANNET200}

_RAW_ID_TO_INDEX = np.full(max(item.raw_id for item in SCANNET200) + 1, -1, dtype=np.int64)
_RAW_ID_TO_INDEX[[item.raw_id for item in SCANNET200]] = np.arange(len(SCANNET200))


def raw_id_to_index(raw_ids: np.ndarray) -> np.ndarray:
    """Class index of raw ScanNet category ids.

    Args:
        raw_ids: Integers of any shape: ids of the raw annotation (0 = unannotated), as in `label-filt` images.

    Returns:
        int64 of the same shape: 0..199, or -1 for every id that is none of the 200 classes.

    Raises:
        ValueError: The ids are not integers.
    """
    raw_ids = np.asarray(raw_ids)
    if not np.issubdtype(raw_ids.dtype, np.integer):
        raise ValueError(f"raw_ids has dtype {raw_ids.dtype}; expected integers")
    known = (raw_ids >= 0) & (raw_ids < len(_RAW_ID_TO_INDEX))
    return np.where(known, _RAW_ID_TO_INDEX[np.where(known, raw_ids, 0)], -1)


def point_instances_from_labels(
    instance: np.ndarray, semantic: np.ndarray, stuff_classes: Sequence[int] = (0, 1)
) -> tuple[np.ndarray, np.ndarray]:
    """Instances of things, numbered without gaps, from raw instance and semantic labels.

    Points of stuff (wall, floor) and points without a class belong to no instance, whatever id they carry. The rest
    is renumbered in the order of the raw ids; an instance has the class of its first point. The rule is that of
    ESAM's data pipeline, except that a frame without any background point keeps its first instance.

    Args:
        instance: int [...]; negative = none.
        semantic: int [...], class index; negative = unlabelled.
        stuff_classes: Class indices that have no instances; they come before all others.

    Returns:
        int64 [...], -1 = none, else 0..M-1; and int64 [M], instance labels (class index minus the number of stuff
        classes).

    Raises:
        ValueError: The shapes differ, or the stuff classes are not the first ones.
    """
    instance, semantic = np.asarray(instance), np.asarray(semantic)
    if instance.shape != semantic.shape:
        raise ValueError(f"instance has shape {instance.shape} and semantic {semantic.shape}; expected the same")
    if sorted(stuff_classes) != list(range(len(stuff_classes))):
        raise ValueError(f"stuff_classes is {tuple(stuff_classes)}; expected the first class indices 0, 1, ...")
    is_thing = (instance >= 0) & (semantic >= len(stuff_classes))
    _, first, number = np.unique(instance[is_thing], return_index=True, return_inverse=True)
    point_instance = np.full(instance.shape, -1, dtype=np.int64)
    point_instance[is_thing] = number.reshape(-1)
    return point_instance, semantic[is_thing][first].astype(np.int64) - len(stuff_classes)


def thing_classes(
    semantic: np.ndarray,
    num_classes: int,
    stuff_classes: Sequence[int] = (0, 1),
    class_to_label: Sequence[int] | None = None,
) -> np.ndarray:
    """The classes of points that may have instances.

    Args:
        semantic: int [...], class index; negative = unlabelled.
        num_classes: Number of classes.
        stuff_classes: Classes that have no instances.
        class_to_label: Label of each class, negative for classes whose instances are left out; None keeps all.

    Returns:
        The shape of `semantic`; -1 at all other points.
    """
    is_thing = np.ones(num_classes + 1, dtype=bool)
    # The last entry answers for -1.
    is_thing[[*stuff_classes, -1]] = False
    if class_to_label is not None:
        is_thing[:-1] &= np.asarray(class_to_label) >= 0
    return np.where(is_thing[np.maximum(semantic, -1)], semantic, -1)
