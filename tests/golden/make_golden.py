"""Writes the golden files from fit_torch.py, and measures what float32 makes of them.

    python3 make_golden.py write [FOLDER]    # without one, over the files beside this script
    python3 make_golden.py measure           # float32 errors against the files beside this script

Parameters and inputs are drawn from a counter-based generator keyed by (seed, tensor
name), rounded to float32, and only then used in float64; results are rounded once.
"""

import hashlib
import json
import os
import struct
import sys

# Gradients of key biases are rounding noise, so their bytes depend on the processor that OpenBLAS computes for.
os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")

import numpy as np
import torch

import fit_torch as fit
from fit_torch import Config

HERE = os.path.dirname(os.path.abspath(__file__))
torch.set_num_threads(1)

DTYPES = {"F32": np.dtype("<f4"), "I32": np.dtype("<i4")}


def write_safetensors(path, tensors, metadata):
    header, at, blobs = {"__metadata__": metadata}, 0, []
    for name in sorted(tensors):
        value = np.asarray(tensors[name], order="C")
        code = "I32" if value.dtype.kind in "iu" else "F32"
        blob = value.astype(DTYPES[code]).tobytes()
        header[name] = {"dtype": code, "shape": list(value.shape), "data_offsets": [at, at + len(blob)]}
        at += len(blob)
        blobs.append(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def read_safetensors(path):
    with open(path, "rb") as f:
        raw = f.read()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    data, end, out = raw[8 + size :], 0, {}
    metadata = header.pop("__metadata__", {})
    for name, entry in sorted(header.items(), key=lambda kv: kv[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        assert begin == end, f"{path}: hole before {name}"
        value = np.frombuffer(data[begin:stop], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        out[name], end = value, stop
    assert end == len(data) and size % 8 == 0
    return out, metadata


def bits(seed, name, count):
    """SplitMix64 outputs of a stream of their own."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        x = np.uint64(key) + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def uniform(seed, name, shape):
    u = (bits(seed, name, int(np.prod(shape))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return u.reshape(shape)


def normal(seed, name, shape, scale=1.0):
    n = int(np.prod(shape))
    u = uniform(seed, name, (2 * n,))
    z = np.sqrt(-2.0 * np.log1p(-u[:n])) * np.cos(2.0 * np.pi * u[n:])
    return f32(scale * z.reshape(shape))


def integers(seed, name, shape, limit):
    return (bits(seed, name, int(np.prod(shape))) % np.uint64(limit)).astype(np.int32).reshape(shape)


def f32(x):
    return np.asarray(x, dtype=np.float32)


def parameter(seed, name, shape):
    if name.endswith("norm.weight"):
        return f32(1.0 + 0.2 * np.clip(normal(seed, name, shape), -2, 2))
    if name.endswith("positions"):
        return normal(seed, name, shape, 0.7)
    if name.endswith("embedding.weight") and "time" not in name:
        return normal(seed, name, shape, 0.5)
    if name.endswith(".weight"):
        gain = 1.3 if ".query." in name or ".key." in name else 1.0
        return normal(seed, name, shape, gain / np.sqrt(shape[1]))
    return normal(seed, name, shape, 0.25)


def tensor(x, dtype=torch.float64, grad=False):
    t = torch.from_numpy(np.array(x))
    if t.is_floating_point():
        t = t.to(dtype).requires_grad_(grad)
    else:
        t = t.long()
    return t


def make_model(config, parameters, dtype):
    net = fit.build_model(config, dtype=dtype).train()
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(torch.from_numpy(np.array(parameters[name])).to(dtype))
    return net


def draw_parameters(config, seed):
    net = fit.build_model(config)
    return {n: parameter(seed, n, tuple(p.shape)) for n, p in net.named_parameters()}


def model_inputs(c, seed, gamma_range=(0.02, 0.98)):
    B, T, n = c.batch, c.groups, c.tokens
    if c.kind == "autoregressive":
        targets = integers(seed, "targets", (B, T, n), c.vocabulary)
        return {"ids": fit.shift_right(torch.from_numpy(targets)).numpy(), "targets": targets}
    out = {"x": normal(seed, "x", (B, T, n, c.channels))}
    if c.kind == "encoder" and c.extra_tokens:
        out["extra"] = normal(seed, "extra", (B, T, c.extra_tokens, c.extra_channels))
    if c.kind == "diffusion":
        low, high = gamma_range
        out["gamma"] = f32(low + (high - low) * uniform(seed, "gamma", (B,)))
        if c.condition_channels:
            s = (c.condition_tokens,) if c.condition_tokens else ()
            out["condition"] = normal(seed, "condition", (B, *s, c.condition_channels))
        if c.self_conditioning == "latent":
            out["previous_latents"] = normal(seed, "previous_latents", (B, T, c.latents, c.latent_dim))
    return out


OUTPUTS = {
    "encoder": ("data", "latents"),
    "diffusion": ("prediction", "latents"),
    "autoregressive": ("logits",),
}


def call_model(net, inputs, trace=None):
    kind = net.config.kind
    if kind == "encoder":
        return net(inputs["x"], inputs.get("extra"), trace=trace)
    if kind == "diffusion":
        return net(
            inputs["x"], inputs["gamma"], inputs.get("condition"), inputs.get("previous_latents"), trace=trace
        )
    return (net(inputs["ids"], trace=trace),)


def collect_gradients(net, prefix, out):
    for name, p in net.named_parameters():
        g = torch.zeros_like(p) if p.grad is None else p.grad
        out[f"{prefix}.{name}"] = g.detach().numpy().copy()
        p.grad = None


def run_model(config, given, dtype, with_trace):
    """given: numpy param./input./cotangent. tensors -> output., grad., grad_input., trace. arrays."""
    pick = lambda prefix: {k[len(prefix) :]: v for k, v in given.items() if k.startswith(prefix)}
    net = make_model(config, pick("param."), dtype)
    inputs = {k: tensor(v, dtype, grad=True) for k, v in pick("input.").items()}
    trace = {} if with_trace else None
    outputs = call_model(net, inputs, trace)
    out, total = {}, 0.0
    for name, value in zip(OUTPUTS[config.kind], outputs):
        out["output." + name] = value.detach().numpy()
        total = total + (value * tensor(given["cotangent." + name], dtype)).sum()
    total.backward(retain_graph=config.kind == "autoregressive")
    collect_gradients(net, "grad", out)
    for name, value in inputs.items():
        if value.requires_grad:
            g = torch.zeros_like(value) if value.grad is None else value.grad
            out["grad_input." + name] = g.numpy().copy()
    if config.kind == "autoregressive":
        loss = fit.cross_entropy(outputs[0], inputs["targets"])
        loss.backward()
        out["output.loss"] = loss.detach().numpy()
        collect_gradients(net, "grad_loss", out)
    for name, value in (trace or {}).items():
        out["trace." + name] = value.detach().numpy()
    return out


def model_case(seed, trace=False, **fields):
    c = Config(**fields)
    given = {"param." + k: v for k, v in draw_parameters(c, seed).items()}
    given.update({"input." + k: v for k, v in model_inputs(c, seed).items()})
    probe = call_model(
        make_model(c, {k[6:]: v for k, v in given.items() if k.startswith("param.")}, torch.float64),
        {k[6:]: tensor(v) for k, v in given.items() if k.startswith("input.")},
    )
    for name, value in zip(OUTPUTS[c.kind], probe):
        given["cotangent." + name] = normal(seed, "cotangent." + name, tuple(value.shape))
    return c.kind, json.loads(c.to_json()), given, lambda dtype: run_model(c, given, dtype, trace)


def run_sampler(config, s, given, dtype):
    net = make_model(config, {k[6:]: v for k, v in given.items() if k.startswith("param.")}, dtype).eval()
    noise = tensor(given["input.step_noise"], dtype) if "input.step_noise" in given else None
    history = []
    condition = tensor(given["input.condition"], dtype) if "input.condition" in given else None
    samples = fit.sample(
        net, s["schedule"], s["steps"], tensor(given["input.initial_noise"], dtype), condition, s["method"], noise,
        s["prediction"], s["x0_clip"], s["guidance"], s["decay"], s["td"], history,
    )
    out = {"output.samples": samples.numpy()}
    for i, (x0, eps, x, z) in enumerate(history):
        for name, value in (("x0", x0), ("eps", eps), ("x", x), ("latents", z)):
            out[f"trace.steps.{i}.{name}"] = value.numpy()
    return out


def sampler_case(seed, sampler, **fields):
    c = Config(kind="diffusion", **fields)
    shape = (c.batch, c.groups, c.tokens, c.channels)
    given = {"param." + k: v for k, v in draw_parameters(c, seed).items()}
    given["input.initial_noise"] = normal(seed, "initial_noise", shape)
    if sampler["method"] != "ddim":
        given["input.step_noise"] = normal(seed, "step_noise", (sampler["steps"], *shape))
    given.update({"input." + k: v for k, v in model_inputs(c, seed).items() if k == "condition"})
    config = dict(json.loads(c.to_json()), sampler=sampler)
    return "sampler", config, given, lambda dtype: run_sampler(c, sampler, given, dtype)


def run_loss(config, s, given, dtype):
    net = make_model(config, {k[6:]: v for k, v in given.items() if k.startswith("param.")}, dtype)
    x0, eps, t = (tensor(given["input." + k], dtype) for k in ("x0", "eps", "t"))
    condition = tensor(given["input.condition"], dtype) if "input.condition" in given else None
    loss = fit.diffusion_loss(
        net, x0, eps, t, condition, s["schedule"], s["prediction"], s["loss_on"], s["x0_clip"], s["scale"],
        s["self_conditioning_rate"],
    )
    loss.backward()
    out = {"output.loss": loss.detach().numpy()}
    collect_gradients(net, "grad", out)
    return out


def loss_case(seed, loss, **fields):
    c = Config(kind="diffusion", **fields)
    shape = (c.batch, c.groups, c.tokens, c.channels)
    given = {"param." + k: v for k, v in draw_parameters(c, seed).items()}
    given["input.x0"] = f32(loss["scale"] * (2 * uniform(seed, "x0", shape) - 1))
    given["input.eps"] = normal(seed, "eps", shape)
    given["input.t"] = f32(0.05 + 0.9 * uniform(seed, "t", (c.batch,)))
    given.update({"input." + k: v for k, v in model_inputs(c, seed).items() if k == "condition"})
    config = dict(json.loads(c.to_json()), loss=loss)
    return "diffusion_loss", config, given, lambda dtype: run_loss(c, loss, given, dtype)


def schedule_case(seed, schedules):
    t = np.concatenate([np.linspace(0, 1, 65), uniform(seed, "t", (31,))])
    given = {"input.t": f32(t)}

    def run(dtype):
        t64 = tensor(given["input.t"], dtype)
        return {"output." + k: fit.noise_level(s, t64).numpy() for k, s in schedules.items()}

    return "schedule", {"schedules": schedules}, given, run


def run_grouping(cases, given):
    out = {}
    for name, c in cases.items():
        x = torch.from_numpy(np.array(given["input." + name]))
        if c["operation"] == "image":
            y = fit.group_image(x, c["sub_image"], c["patch"])
            assert torch.equal(fit.ungroup_image(y, x.shape[1:3], c["sub_image"], c["patch"]), x)
        elif c["operation"] == "patches":
            y = fit.image_patches(x, c["patch"], c["order"])
            assert torch.equal(fit.patches_image(y, tuple(x.shape[1:3]), c["patch"], c["order"]), x)
        elif c["operation"] == "sequence":
            y = fit.group_sequence(x, c["tokens"])
            assert torch.equal(fit.ungroup_sequence(y), x)
        else:
            y = fit.shift_right(x)
        out["output." + name] = y.contiguous().numpy()
    return out


def grouping_case(seed, cases):
    given = {}
    for name, c in cases.items():
        if c["operation"] == "shift_right":
            given["input." + name] = integers(seed, name, tuple(c["shape"]), 100)
        else:
            given["input." + name] = normal(seed, name, tuple(c["shape"]))
    return "grouping", {"cases": cases}, given, lambda dtype: run_grouping(cases, given)


SIGMOID = {"kind": "sigmoid", "start": -3.0, "end": 3.0, "tau": 0.9}
COSINE = {"kind": "cosine", "start": 0.0, "end": 1.0, "tau": 1.0}
SIMPLE = {"kind": "cosine_simple"}


def sampler(method, steps, schedule, prediction, clip, guidance=0.0, decay=0.0, td=0.0):
    return dict(method=method, steps=steps, schedule=schedule, prediction=prediction, x0_clip=clip, guidance=guidance,
                decay=decay, td=td)


def loss(schedule, prediction, loss_on, clip, scale, rate):
    return dict(schedule=schedule, prediction=prediction, loss_on=loss_on, x0_clip=clip, scale=scale,
                self_conditioning_rate=rate)


def shape(B, T, n, m, D, E, hD, hE, r):
    return dict(batch=B, groups=T, tokens=n, latents=m, data_dim=D, latent_dim=E, data_heads=hD, latent_heads=hE,
                mlp_ratio=r)


def cases():
    m = model_case
    yield "encoder_trace", m(
        11, trace=True, kind="encoder", layers="(1)1(1)", channels=5, **shape(2, 5, 7, 3, 24, 32, 3, 4, 2))
    yield "encoder_causal_no_local", m(
        12, kind="encoder", layers="(0)2(0)", channels=12, mask="causal", data_positions="sin_cos",
        **shape(2, 4, 16, 4, 16, 40, 2, 5, 1))
    yield "encoder_extra_sin_cos", m(
        13, kind="encoder", layers="(1)2(1)1(1)", channels=6, extra_tokens=3, extra_channels=4,
        data_positions="sin_cos_2d", latent_positions="sin_cos", **shape(2, 3, 9, 2, 16, 24, 4, 2, 3))
    yield "encoder_simd_one_stage", m(
        14, kind="encoder", layers="(1)1", channels=8, mask="causal", **shape(1, 2, 16, 8, 64, 16, 2, 1, 1))
    yield "encoder_local_only", m(
        15, kind="encoder", layers="(2)", channels=3, latent_positions="sin_cos", extra_tokens=1, extra_channels=7,
        **shape(1, 3, 8, 2, 32, 12, 4, 2, 4))

    yield "diffusion_trace", m(
        21, trace=True, kind="diffusion", layers="(1)1(1)", channels=5, output_channels=5, condition_channels=7,
        self_conditioning="latent", **shape(2, 5, 7, 3, 20, 28, 5, 2, 2))
    yield "diffusion_all_options", m(
        22, kind="diffusion", layers="(1)2(2)", channels=12, output_channels=12, condition_channels=5,
        condition_tokens=4, mask="causal", local_attention=False, cross_mlp=True, cross_context_norm=False,
        **shape(2, 4, 8, 4, 16, 24, 2, 4, 2))
    yield "diffusion_no_local", m(
        23, kind="diffusion", layers="(0)2(0)", channels=4, output_channels=6, condition_channels=3,
        self_conditioning="latent", cross_mlp=True, data_positions="sin_cos", latent_positions="sin_cos",
        **shape(3, 2, 16, 3, 32, 24, 1, 3, 2))
    yield "diffusion_one_stage", m(
        24, kind="diffusion", layers="(1)1", channels=9, output_channels=9, condition_channels=6, condition_tokens=1,
        cross_context_norm=False, **shape(2, 3, 5, 2, 32, 20, 4, 5, 2))
    yield "diffusion_three_stages", m(
        25, kind="diffusion", layers="(1)2(1)1(1)", channels=5, output_channels=5, condition_channels=4,
        condition_tokens=2, mask="causal", self_conditioning="latent", **shape(2, 3, 6, 2, 12, 20, 3, 1, 3))

    yield "autoregressive_trace", m(
        31, trace=True, kind="autoregressive", layers="(1)1(1)", vocabulary=17, **shape(2, 5, 7, 3, 24, 20, 3, 2, 2))
    yield "autoregressive_three_stages", m(
        32, kind="autoregressive", layers="(1)2(1)1(1)", vocabulary=32, shared_embedding=False, output_bias=False,
        data_positions="sin_cos", latent_positions="sin_cos", **shape(2, 4, 8, 2, 12, 20, 2, 4, 2))
    yield "autoregressive_no_local", m(
        33, kind="autoregressive", layers="(0)2(0)", vocabulary=19, output_bias=False,
        **shape(2, 3, 16, 4, 32, 16, 2, 2, 2))
    yield "autoregressive_unused_latents", m(
        34, kind="autoregressive", layers="(1)1(1)1", vocabulary=23, shared_embedding=False, keep_unused_latents=True,
        **shape(2, 3, 5, 2, 20, 12, 5, 3, 2))

    small = dict(layers="(1)1(1)", channels=4, output_channels=4, condition_channels=5,
                 **shape(2, 3, 4, 2, 16, 24, 2, 3, 2))
    yield "sampler_ddim_guided", sampler_case(
        41, sampler("ddim", 5, SIGMOID, "v", [-1.0, 1.0], guidance=1.5, decay=0.25), self_conditioning="latent", **small)
    yield "sampler_ddpm_large", sampler_case(
        42, sampler("ddpm_large", 4, SIMPLE, "x0", None, td=0.5), condition_tokens=2, **small)
    yield "sampler_ddpm_small", sampler_case(
        43, sampler("ddpm_small", 4, COSINE, "eps", [-1.5, 1.0], guidance=-0.5), self_conditioning="latent", **small)
    yield "diffusion_loss", loss_case(
        51, loss(SIGMOID, "v", "eps", None, 0.8, 0.5), self_conditioning="latent", **dict(small, batch=5))
    yield "schedules", schedule_case(61, {
        "cosine_simple": SIMPLE,
        "cosine": COSINE,
        "cosine_part": {"kind": "cosine", "start": 0.2, "end": 0.9, "tau": 0.7},
        "cosine_steep": {"kind": "cosine", "start": 0.2, "end": 1.0, "tau": 2.0},
        "sigmoid": SIGMOID,
        "sigmoid_half": {"kind": "sigmoid", "start": 0.0, "end": 3.0, "tau": 0.3},
        "linear": {"kind": "linear"},
        "log": {"kind": "log", "start": 1.0, "end": 100.0, "reverse": False},
        "log_reverse": {"kind": "log", "start": 1.0, "end": 100.0, "reverse": True},
    })
    yield "grouping", grouping_case(71, {
        "image_square": dict(operation="image", shape=[2, 8, 8, 3], sub_image=[4, 4], patch=[2, 2]),
        "image_oblong": dict(operation="image", shape=[1, 12, 24, 2], sub_image=[4, 8], patch=[2, 4]),
        "image_unequal_grid": dict(operation="image", shape=[1, 6, 16, 1], sub_image=[3, 4], patch=[3, 2]),
        "patches_raster": dict(operation="patches", shape=[2, 6, 8, 3], patch=[2, 2], order="raster"),
        "patches_snake": dict(operation="patches", shape=[2, 6, 8, 3], patch=[2, 2], order="snake"),
        "patches_snake_oblong": dict(operation="patches", shape=[1, 9, 10, 1], patch=[3, 2], order="snake"),
        "sequence": dict(operation="sequence", shape=[2, 15, 4], tokens=5),
        "shift": dict(operation="shift_right", shape=[2, 3, 4]),
    })


def write(folder):
    os.makedirs(folder, exist_ok=True)
    for name, (kind, config, given, run) in cases():
        out = run(torch.float64)
        for k, v in out.items():
            assert np.isfinite(v).all(), (name, k)
        path = os.path.join(folder, name + ".safetensors")
        # "spec" is what the exact model was called when the first files were written; nothing reads it.
        metadata = {"kind": kind, "config": json.dumps(config, sort_keys=True), "spec": "spec/FIT.md"}
        write_safetensors(path, {**given, **out}, metadata)
        print(f"{os.path.getsize(path):9d} {path}")


def deviation(a, b, floor):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), floor * np.sqrt(b.size), 1e-30))


def group_of(name):
    if name == "grad_input.gamma":
        return name
    return name.split(".")[0] + (" key.bias" if name.startswith("grad") and name.endswith("key.bias") else "")


def floors(tensors):
    """0.001 of the root mean square over all tensors of a gradient group."""
    sums = {}
    for k, v in tensors.items():
        s = sums.setdefault(group_of(k), [0.0, 0])
        s[0] += float((v.astype(np.float64) ** 2).sum())
        s[1] += v.size
    return {g: 1e-3 * (s / n) ** 0.5 if g.startswith("grad") else 0.0 for g, (s, n) in sums.items()}


def measure():
    overall = {}
    for name, (kind, _, given, run) in cases():
        stored, metadata = read_safetensors(os.path.join(HERE, name + ".safetensors"))
        assert metadata["kind"] == kind
        for k, v in given.items():
            assert np.array_equal(stored[k], v), (name, k)
        floor = floors(stored)
        worst = {}
        for k, v in run(torch.float32).items():
            g = group_of(k)
            if g.endswith("key.bias"):  # mathematically zero: set against the query's bias
                beside = stored[k.replace("key.bias", "query.bias")]
                e = float(np.linalg.norm(v) / max(np.linalg.norm(beside), floor[g[:-9]]))
            else:
                e = deviation(v, stored[k], floor[g])
            if e >= worst.get(g, (0.0, ""))[0]:
                worst[g] = (e, k)
        print(f"{name:30s} " + "  ".join(f"{g} {e:.1e} ({k.split('.', 1)[1]})" for g, (e, k) in sorted(worst.items())))
        for g, (e, k) in worst.items():
            key = (kind, g)
            if e >= overall.get(key, (0.0,))[0]:
                overall[key] = (e, name, k)
    print()
    for (kind, g), (e, name, k) in sorted(overall.items()):
        print(f"{kind:15s} {g:18s} {e:.1e}  {name}: {k}")


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        measure()
    elif sys.argv[1:2] == ["write"] and len(sys.argv) <= 3:
        write(*sys.argv[2:] or [HERE])
    else:
        sys.exit(__doc__)
