"""The merging of a scene once more, in plain Python: dictionaries, loops, every pair, no hash table and no cap."""

SLOTS = 4


def dot(first, second):
    return sum(a * b for a, b in zip(first, second, strict=True))


def volume(box):
    return max(box[3] - box[0], 0) * max(box[4] - box[1], 0) * max(box[5] - box[2], 0)


def iou(first, second):
    shared = [max(first[a], second[a]) for a in range(3)] + [min(first[a], second[a]) for a in range(3, 6)]
    inside = volume(shared)
    union = volume(first) + volume(second) - inside
    return inside / union if union > 0 else 0.0


def best_pairs(table):
    """Pairs (row, column) above 0 of the one-to-one choice of largest sum: the best for every set of columns."""
    best = {frozenset(): (0.0, [])}
    for row, values in enumerate(table):
        for used, (total, pairs) in list(best.items()):
            for column, value in enumerate(values):
                taken = used | {column}
                if value > 0 and column not in used and total + value > best.get(taken, (0.0, []))[0]:
                    best[taken] = (total + value, [*pairs, (row, column)])
    return max(best.values(), key=lambda entry: entry[0])[1]


class SlowScene:
    """Objects as dictionaries, voxels as dictionaries of votes."""

    def __init__(self, kind, min_overlap=0.2, min_known=5, label_gate=True):
        self.kind, self.min_overlap, self.min_known, self.label_gate = kind, min_overlap, min_known, label_gate
        self.objects, self.voxels = [], {}

    def owner(self, key):
        votes = {i: v for i, v in self.voxels[key]["slots"] if i is not None}
        return min(votes, key=lambda i: (-votes[i], i)) if votes else None

    def similarity(self, item, instance, seen):
        if self.kind == "learned":
            value = dot(item["features"], instance["features"]) * iou(item["boxes"], instance["boxes"])
            return max(value, 0.0) * (not self.label_gate or item["labels"] == instance["labels"])
        visible = {key for key in seen if key in self.voxels and self.owner(key) == item["id"]}
        known = {key for key in instance["voxels"] if key in self.voxels}
        if not visible or len(visible | known) < self.min_known:
            return 0.0
        first, second = item["features"], instance["features"]
        cosine = dot(first, second) / (dot(first, first) * dot(second, second)) ** 0.5
        value = len(visible & known) / len(visible | known) * max(cosine, 0.0)
        return value if value > self.min_overlap else 0.0

    def update(self, instances, seen):
        """Instances as dictionaries with the set "voxels"; `seen` is the set of all voxels of the frame."""
        table = [[self.similarity(item, instance, seen) for instance in instances] for item in self.objects]
        matched = {column: self.objects[row] for row, column in best_pairs(table)}
        ids = []
        for column, instance in enumerate(instances):
            item = matched.get(column)
            if item is None:
                item = {"id": len(self.objects), "views": 1, **instance}
                self.objects.append(item)
            else:
                c = item["views"]
                item["scores"] = (item["scores"] * c + instance["scores"]) / (c + 1)
                for name in ("boxes", "class_logits", "features", "queries"):
                    item[name] = [(a * c + b) / (c + 1) for a, b in zip(item[name], instance[name], strict=True)]
                item["views"] = c + 1
            ids.append(item["id"])
        for key in seen:
            voxel = self.voxels.setdefault(key, {"seen": 0, "slots": [[None, 0] for _ in range(SLOTS)]})
            voxel["seen"] += 1
            for column, instance in enumerate(instances):
                if key in instance["voxels"]:
                    self.vote(voxel["slots"], ids[column])
        return ids

    def vote(self, slots, index):
        for slot in slots:
            if slot[0] == index:
                slot[1] += 1
                return
        for slot in slots:
            if slot[0] is None:
                slot[:] = [index, 1]
                return
        weakest = min(range(SLOTS), key=lambda place: slots[place][1])
        slots[weakest][1] -= 1
        if slots[weakest][1] == 0:
            slots[weakest][0] = None
