"""BiFusion once more, slowly: one unpadded frame at a time, on a dense voxel grid, with dense PyTorch alone.

Written from the documents (docs/fusion.md, docs/sparse.md and the descriptions of ESAM's single-view network and its
frame adapters), not from the layers. It reads a model's weights by their names and shares no code with it; the image
tower is the one of transformers. In evaluation, in float64.
"""

import copy
import itertools
import math

import torch
import torch.nn.functional as F
from transformers import AutoModel


class SlowNetwork:
    """The network of a configuration.

    Args:
        config: A `BiFusionConfig`.
        weights: State dict of the `BiFusionForInstanceSegmentation`.
        is_gate_held: Whether training is in the gate's warm-up.
    """

    def __init__(self, config, weights, is_gate_held=False):
        self.config = config
        self.weights = {name: value.double() for name, value in weights.items()}
        self.is_gate_held = is_gate_held
        self.tower = None
        if config.vision_config is not None:
            prefix = "model.encoder.image_encoder.vision_model."
            # Plain attention: in float64 the fused one is exact to 1e-8 alone. A copy, as the model's may be another.
            vision = copy.deepcopy(config.vision_config)
            self.tower = AutoModel.from_config(vision, attn_implementation="eager").double().eval()
            own = {name.removeprefix(prefix): w for name, w in self.weights.items() if name.startswith(prefix)}
            missing = self.tower.load_state_dict(own, strict=False).missing_keys
            assert not [name for name in missing if "post_layernorm" not in name], missing

    @torch.no_grad()
    def __call__(self, voxels, features, points, superpoints, image, pixels, visible, rotation):
        """Outputs of one frame: N points [N, 3], superpoints 0..S-1, their pixels; and what `unet` made of them."""
        points = points.double()
        if self.config.use_tiny_sa_3d:
            features = self.tiny_sa_3d(voxels, features)
        features, alpha = voxels.read(features), None
        if self.config.fusion_type != "none":
            features, alpha = self.fuse(voxels, points, features, image.double(), pixels.double(), visible, rotation)
        pooled, weights = self.pool(points, features, superpoints)
        heads, semantic = self.decode(points, features, superpoints, weights, pooled)
        return {"features": features, "alpha": alpha, "pooled": pooled, "heads": heads, "semantic": semantic}

    # Plain layers by name

    def has(self, name):
        return any(key.startswith(name) for key in self.weights)

    def linear(self, name, x):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def layer_norm(self, name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def mlp(self, name, x):
        return self.linear(f"{name}.out", torch.relu(self.linear(f"{name}.hidden", x)))

    def attention(self, name, queries, keys, allowed, num_heads):
        """[Q, D] attends to [K, D] where `allowed` [Q, K]."""
        size = queries.shape[1] // num_heads
        q, k, v = (self.linear(f"{name}.{n}_proj", x) for n, x in zip("qkv", (queries, keys, keys), strict=True))
        heads = []
        for head in range(num_heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ k[:, part].T / math.sqrt(size)
            scores = torch.where(allowed, scores, -torch.inf)
            heads.append(scores.softmax(1) @ v[:, part])
        return self.linear(f"{name}.out_proj", torch.cat(heads, 1))

    # Point branch

    @torch.no_grad()
    def unet(self, voxels, colors):
        """The sparse U-Net, densely: [out_channels, z, y, x], 0 where there is no voxel."""
        place, config = "model.encoder.point_encoder.", self.config.point_config
        x = self.conv(f"{place}stem", voxels.write(colors.double()), voxels.occupied[0])
        x = self.normed(f"{place}stem_norm", x, 0, voxels)
        skips = [x]
        for level in range(4):
            x = F.conv3d(x, self.kernel(f"{place}down_convs.{level}"), stride=2)
            x = self.normed(f"{place}down_norms.{level}", x, level + 1, voxels)
            x = self.blocks(f"{place}down_blocks.{level}", x, config.blocks[level], voxels.occupied[level + 1])
            # What the decoder reads is adapted; the next level of the encoder reads what was not.
            skips.append(self.adapt(f"{place}frame_adapters.{level}", x, voxels.occupied[level + 1]))
        x = skips.pop()
        for step in range(4):
            level = 3 - step
            kernel = self.kernel(f"{place}up_convs.{step}").transpose(0, 1)
            x = F.conv_transpose3d(x, kernel, stride=2) * voxels.occupied[level]
            x = self.normed(f"{place}up_norms.{step}", x, level, voxels)
            x = torch.cat([x, skips.pop()])
            x = self.blocks(f"{place}up_blocks.{step}", x, config.blocks[4 + step], voxels.occupied[level])
        return x

    def normed(self, name, x, level, voxels):
        return torch.relu(self.batch_norm(name, x)) * voxels.occupied[level]

    def kernel(self, name):
        """A kernel [K^3, in, out], x fastest, as conv3d wants it: [out, in, z, y, x]."""
        kernel = self.weights[f"{name}.kernel"]
        size = round(kernel.shape[0] ** (1 / 3))
        return kernel.reshape(size, size, size, *kernel.shape[1:]).permute(4, 3, 0, 1, 2)

    def conv(self, name, x, occupied, dilation=1):
        """A convolution whose results are kept where there are voxels."""
        if self.weights[f"{name}.kernel"].ndim == 2:
            return torch.einsum("czyx,co->ozyx", x, self.weights[f"{name}.kernel"])
        kernel = self.kernel(name)
        reach = dilation * (kernel.shape[-1] // 2)
        return F.conv3d(x, kernel, padding=reach, dilation=dilation) * occupied

    def batch_norm(self, name, x):
        mean, var, weight, bias = (
            self.weights[f"{name}.{part}"].reshape(-1, 1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + self.config.point_config.batch_norm_eps) * weight + bias

    def blocks(self, name, x, count, occupied):
        for index in range(count):
            block = f"{name}.{index}"
            shortcut = x
            if self.has(f"{block}.shortcut_conv"):
                shortcut = self.batch_norm(f"{block}.shortcut_norm", self.conv(f"{block}.shortcut_conv", x, occupied))
            y = torch.relu(self.batch_norm(f"{block}.norm1", self.conv(f"{block}.conv1", x, occupied))) * occupied
            y = self.batch_norm(f"{block}.norm2", self.conv(f"{block}.conv2", y, occupied))
            x = torch.relu(y + shortcut) * occupied
        return x

    def adapt(self, name, x, occupied):
        """The adapters of the online network, as they act on a first frame."""
        if not self.config.point_config.use_frame_adapters:
            return x
        near = torch.relu(self.batch_norm(f"{name}.norm_near", self.conv(f"{name}.conv_near", x, occupied)))
        far = torch.relu(self.batch_norm(f"{name}.norm_far", self.conv(f"{name}.conv_far", x, occupied, dilation=3)))
        mean = x.sum((1, 2, 3), keepdim=True) / occupied.sum()
        mixed = self.conv(f"{name}.conv_mix", torch.cat([near, far, mean.expand_as(x)]), occupied)
        return torch.relu(self.batch_norm(f"{name}.norm_mix", mixed) + x) * occupied

    def tiny_sa_3d(self, voxels, features):
        """Attention among blocks of 4 x 4 x 4 voxels, in windows; in the second layer shifted by half a window."""
        place, config = "model.encoder.tiny_sa_3d", self.config
        window = max(2, round(2 * config.tiny_sa_radius / (4 * config.voxel_size)))
        cells, of_voxel = voxels.coordinates.div(4, rounding_mode="floor").unique(dim=0, return_inverse=True)
        rows = voxels.gather(features)
        tokens = torch.stack([rows[of_voxel == cell].mean(0) for cell in range(len(cells))])
        for layer in range(2):
            moved = cells + layer * (window // 2)
            inside = (moved % window).double() / window - 0.5
            tokens = tokens + self.linear(f"{place}.position", inside)
            corner = moved.div(window, rounding_mode="floor")
            together = (corner[:, None] == corner[None]).all(2)
            tokens = self.self_attention_block(f"{place}.layers.{layer}", tokens, together)
        return voxels.scatter(rows + self.linear(f"{place}.out", tokens)[of_voxel])

    def self_attention_block(self, name, tokens, allowed):
        normed = self.layer_norm(f"{name}.attention_norm", tokens)
        tokens = tokens + self.attention(f"{name}.attention", normed, normed, allowed, 4)
        hidden = F.gelu(self.linear(f"{name}.ffn_in", self.layer_norm(f"{name}.ffn_norm", tokens)))
        return tokens + self.linear(f"{name}.ffn_out", hidden)

    # Image branch and fusion

    def token_map(self, image):
        """Projected features of the tower, [C, rows, columns]."""
        place = "model.encoder.image_encoder.projection"
        rows, columns = image.shape[1] // self.patch[0], image.shape[2] // self.patch[1]
        if self.config.vision_config.model_type == "clip_vision_model":
            tokens = self.tower(image[None], interpolate_pos_encoding=True).last_hidden_state[0, 1:]
        else:
            tokens = self.tower(image[None]).last_hidden_state[0].flatten(1).T
        hidden = F.gelu(self.linear(f"{place}.hidden", F.gelu(self.layer_norm(f"{place}.norm", tokens))))
        tokens = self.linear(f"{place}.out", hidden)
        if self.config.use_tiny_sa_2d:
            everything = torch.ones(len(tokens), len(tokens), dtype=torch.bool)
            hidden = self.self_attention_block("model.encoder.tiny_sa_2d.layers.0", tokens, everything)
            tokens = tokens + self.linear("model.encoder.tiny_sa_2d.out", hidden)
        return tokens.T.reshape(-1, rows, columns)

    @property
    def patch(self):
        vision = self.config.vision_config
        if vision.model_type == "clip_vision_model":
            return (vision.patch_size, vision.patch_size)
        return (4 * 2 ** (len(vision.depths) - 1),) * 2

    def sample(self, tokens, pixels):
        """Bilinear between the pixels that tokens look at; beyond the outermost ones constant."""
        (height, width), patch = tokens.shape[1:], self.patch
        # Pixel i has its centre at i + 0.5. A patch has its middle half a patch from its edge; the odd kernels of a
        # ResNet look at the first pixel of their block.
        middle = [0.5, 0.5] if self.config.vision_config.model_type == "resnet" else [patch[0] / 2, patch[1] / 2]
        sampled = []
        for u, v in pixels.tolist():
            x = min(max((u * width * patch[1] - middle[1]) / patch[1], 0), width - 1)
            y = min(max((v * height * patch[0] - middle[0]) / patch[0], 0), height - 1)
            left, top = min(int(x), width - 2), min(int(y), height - 2)
            upper = tokens[:, top, left] * (left + 1 - x) + tokens[:, top, left + 1] * (x - left)
            lower = tokens[:, top + 1, left] * (left + 1 - x) + tokens[:, top + 1, left + 1] * (x - left)
            sampled.append(upper * (top + 1 - y) + lower * (y - top))
        return torch.stack(sampled)

    def encode(self, points, rotation):
        """The 64 numbers of each point that FiLM is conditioned on."""
        low, high = points.amin(0), points.amax(0)
        diagonal = (high - low).norm()
        position = points / diagonal
        nyquist = math.pi * diagonal / self.config.voxel_size
        frequencies = self.weights["model.encoder.geometric_encoding.log_frequencies"].exp()
        waves = [
            position[:, axis] * nyquist * torch.tanh(f / nyquist)
            for axis, f in itertools.product(range(3), frequencies)
        ]
        waves = torch.stack(waves, 1)
        same = torch.cat([(high - low) / diagonal, rotation.double().reshape(9)]).expand(len(points), -1)
        height = (points[:, 2:] - low[2]) / diagonal
        return torch.cat([position, same, height, waves.sin(), waves.cos()], 1)

    def fuse(self, voxels, points, raw, image, pixels, visible, rotation):
        place, kind = "model.encoder.", self.config.fusion_type
        f2d = unit(self.sample(self.token_map(image), pixels))
        f3d = unit(self.layer_norm(f"{place}point_projection_norm", self.linear(f"{place}point_projection", raw)))
        if self.config.use_film:
            hidden = self.linear(f"{place}film.hidden", self.encode(points, rotation))
            gamma, beta = self.linear(f"{place}film.modulation", hidden * hidden.sigmoid()).chunk(2, 1)
            f2d, f3d = (1 + gamma) * f2d + beta, (1 + gamma) * f3d + beta
        gate = self.enhanced_gate if kind == "enhanced_gate" else self.lite_gate
        alpha = gate(f"{place}fusion.gate", voxels, points, f2d, f3d)
        if self.is_gate_held:
            alpha = torch.full_like(alpha, 0.5)
        alpha = torch.where(visible[:, None], alpha, 0.0)
        mixed = alpha * f2d if kind == "residual" else alpha * f2d + (1 - alpha) * f3d
        excited = torch.relu(self.linear(f"{place}fusion.squeeze_excite.squeeze", mixed.mean(0)))
        mixed = mixed * self.linear(f"{place}fusion.squeeze_excite.excite", excited).sigmoid()
        scale = self.weights[f"{place}fusion.scale"]
        if kind == "residual":
            return raw + self.linear(f"{place}fusion.residual_out", scale * mixed), alpha
        return scale * unit(mixed), alpha

    def lite_gate(self, name, voxels, points, f2d, f3d):
        return self.mlp(name, torch.cat([f2d, f3d], 1)).sigmoid()

    def enhanced_gate(self, name, voxels, points, f2d, f3d):
        """Logits of the point's features, of these with the surface's shape, of the neighbourhood's; mixed."""
        config = self.config
        hidden = (self.linear(f"{name}.image_hidden", f2d) + self.linear(f"{name}.point_hidden", f3d)).split(64, 1)
        neighbours = voxels.neighbours(max(1, round(config.spatial_radius / config.voxel_size)), config.spatial_k)
        positions = voxels.mean(points)
        shape = torch.stack([surface(positions, index, near) for index, near in enumerate(neighbours)])
        shape = self.linear(f"{name}.shape_hidden", torch.relu(self.linear(f"{name}.shape_proj", shape)))
        terms = {"base": hidden[0], "geometric": hidden[1] + shape[voxels.of_point]}
        if config.use_spatial_attention:
            own = voxels.mean(hidden[2])
            around = [own[near].mean(0) if near else torch.zeros(64) for near in neighbours]
            terms["spatial"] = (own + torch.stack(around))[voxels.of_point]
        logits = []
        for term, x in terms.items():
            head = f"{name}.logits.{term}"
            logits.append(self.linear(f"{head}.3", torch.relu(self.linear(f"{head}.1", torch.relu(x)))))
        return self.linear(f"{name}.mix", torch.cat(logits, 1)).sigmoid()

    # Superpoints and decoder

    def pool(self, points, features, superpoints):
        """Superpoint features [S, C], and the weight of each point [N, 1]."""
        place = "model.superpoint_pooling."
        relative = torch.empty_like(points)
        members = [(superpoints == index).nonzero().flatten() for index in range(int(superpoints.max()) + 1)]
        for own in members:
            side = (points[own].amax(0) - points[own].amin(0)).max()
            relative[own] = (points[own] - points[own].mean(0)) / (side + 0.01)
        hidden = torch.relu(self.layer_norm(f"{place}shape_in_norm", self.linear(f"{place}shape_in", relative)))
        shape = self.layer_norm(f"{place}shape_out_norm", self.linear(f"{place}shape_out", hidden))
        largest = torch.stack([shape[own].amax(0) for own in members])
        both = torch.cat([shape, largest[superpoints]], 1)
        hidden = torch.relu(self.layer_norm(f"{place}weight_in_norm", self.linear(f"{place}weight_in", both)))
        weights = 2 * self.linear(f"{place}weight_out", hidden).sigmoid()
        means = torch.stack([(weights[own] * features[own]).mean(0) for own in members])
        return means + largest, weights

    def decode(self, points, features, superpoints, weights, pooled):
        """(class logits, mask logits) of every head, and the semantic logits."""
        config = self.config
        keys = torch.relu(self.layer_norm("decoder.key_norm", self.linear("decoder.key_proj", pooled)))
        masks = {"point": self.mlp("decoder.point_mask_proj", torch.cat([points, features], 1))}
        if self.has("decoder.superpoint_mask_proj"):
            masks["superpoint"] = self.mlp("decoder.superpoint_mask_proj", pooled)
        queries, heads = self.mlp("decoder.query_proj", pooled), []
        everything = torch.ones(len(pooled), len(pooled), dtype=torch.bool)
        for index, level in enumerate(config.decoder_mask_levels):
            if index > 0:
                name, num_heads = f"decoder.layers.{index - 1}", config.decoder_attention_heads
                inside = self.mask(heads[-1][1], config.decoder_mask_levels[index - 1], superpoints, weights)
                attended = self.attention(f"{name}.cross_attention", queries, keys, inside, num_heads)
                queries = self.layer_norm(f"{name}.cross_attention_norm", queries + attended)
                attended = self.attention(f"{name}.self_attention", queries, queries, everything, num_heads)
                queries = self.layer_norm(f"{name}.self_attention_norm", queries + attended)
                fed = self.linear(f"{name}.ffn_out", F.gelu(self.linear(f"{name}.ffn_in", queries)))
                queries = self.layer_norm(f"{name}.ffn_norm", queries + fed)
            normed = self.layer_norm("decoder.out_norm", queries)
            heads.append((self.mlp("decoder.class_head", normed), normed @ masks[level].T))
        return heads, self.linear("decoder.semantic_head", normed)

    def mask(self, logits, level, superpoints, weights):
        """Which superpoints a query may look at: those in its mask, or all, or the least blocked, if none is."""
        blocked = logits.sigmoid() < 0.5
        if level == "superpoint":
            blocked[blocked.all(1)] = False
            return ~blocked
        count = int(superpoints.max()) + 1
        share = [(blocked * weights.T)[:, superpoints == index].mean(1) for index in range(count)]
        share = torch.stack(share, 1)
        return (share <= 0.5) | (share == share.amin(1, keepdim=True))


class Voxels:
    """The voxels of one frame, as places in a dense grid [z, y, x] that begins at a multiple of 16 voxels."""

    def __init__(self, points, voxel_size):
        cells = torch.floor(points.float() * torch.tensor(1 / voxel_size, dtype=torch.float32)).long()
        # In the order of (z, y, x).
        self.coordinates, self.of_point = cells.flip(1).unique(dim=0, return_inverse=True)
        self.coordinates = self.coordinates.flip(1)
        origin = self.coordinates.amin(0).div(16, rounding_mode="floor") * 16
        self.place = tuple((self.coordinates - origin).flip(1).T)
        self.size = [int(axis.max()) // 16 * 16 + 16 for axis in self.place]
        self.occupied = [torch.zeros(self.size, dtype=torch.double)]
        self.occupied[0][self.place] = 1
        for _ in range(4):
            self.occupied.append(F.max_pool3d(self.occupied[-1][None], 2)[0])

    def mean(self, values):
        """Mean of each voxel's points."""
        return torch.stack([values[self.of_point == row].mean(0) for row in range(len(self.coordinates))])

    def scatter(self, rows):
        dense = rows.new_zeros(rows.shape[1], *self.size)
        dense[(slice(None), *self.place)] = rows.T
        return dense

    def write(self, values):
        return self.scatter(self.mean(values))

    def gather(self, dense):
        return dense[(slice(None), *self.place)].T

    def read(self, dense):
        return self.gather(dense)[self.of_point]

    def neighbours(self, radius, count):
        """For each voxel the nearest `count` of those at most `radius` away along each axis."""
        found = []
        for row, centre in enumerate(self.coordinates):
            away = self.coordinates - centre
            near = [other for other in (away.abs().amax(1) <= radius).nonzero().flatten().tolist() if other != row]
            # Sorting keeps the order of equally near ones.
            found.append(sorted(near, key=lambda other: int(away[other].square().sum()))[:count])
        return found


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def surface(positions, index, near):
    """Normal, upwards, and variation of the surface around a voxel."""
    if len(near) < 3:
        return torch.tensor([0, 0, 1, 1 / 3], dtype=torch.double)
    around = positions[[index, *near]]
    values, vectors = torch.linalg.eigh((around - around.mean(0)).T @ (around - around.mean(0)) / len(around))
    normal = vectors[:, 0] if vectors[2, 0] >= 0 else -vectors[:, 0]
    return torch.cat([normal, values[:1] / values.sum()])
