"""Writes how losses fall in PyTorch, from a start and over batches that the files hold too: trajectory_*.safetensors.

    python3 make_trajectories.py [FOLDER]    # without one, over the files beside this script

Each model of fit_torch.py, in float32, takes 200 steps of torch.optim.AdamW over ten batches in turn: rate 1e-3, betas
0.9 and 0.98, weight decay 0.05 of what the library shrinks, gradients cut to a norm of 1.
"""

import json
import os
import sys

import numpy as np
import torch

import make_golden as golden
from fit_torch import AutoregressiveDecoder, Config, DiffusionDecoder, Encoder, cross_entropy, diffusion_loss

STEPS, BATCHES, BATCH, CLASSES = 200, 10, 8, 5
SHAPE = dict(layers="(1)1(1)", groups=3, tokens=8, latents=2, channels=4, data_dim=16, latent_dim=24, data_heads=2,
             latent_heads=2)
SCHEDULE = dict(kind="cosine", start=0.0, end=1.0, tau=1.0)


class Classifier(torch.nn.Module):
    """An encoder with a linear head on the mean of its latents."""

    def __init__(self, config):
        super().__init__()
        self.encoder = Encoder(config)
        self.head = torch.nn.Linear(config.latent_dim, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(x)[1].mean(dim=(1, 2)))


def labelled(seed, c):
    """Noise, with a pattern of its class."""
    labels = golden.integers(seed, "labels", (BATCHES, BATCH), CLASSES)
    patterns = golden.normal(seed, "patterns", (CLASSES, c.groups, c.tokens, c.channels))
    noise = golden.normal(seed, "noise", (BATCHES, BATCH, c.groups, c.tokens, c.channels))
    return {"input.x": golden.f32(0.3 * patterns[labels] + noise), "input.labels": labels}


def noised(seed, c):
    shape = (BATCHES, BATCH, c.groups, c.tokens, c.channels)
    wave = np.sin(np.arange(c.groups * c.tokens * c.channels) / 7).reshape(shape[2:])
    condition = golden.normal(seed, "condition", (BATCHES, BATCH, c.condition_channels))
    return {"input.x0": golden.f32(wave * condition[..., :1, None, None]), "input.condition": condition,
            "input.eps": golden.normal(seed, "eps", shape),
            "input.t": golden.f32(golden.uniform(seed, "t", (BATCHES, BATCH)))}


def counted(seed, c):
    """Ids that follow each other by a step of their sequence's own, some of them any id."""
    shape = (BATCHES, BATCH, c.groups * c.tokens)
    first, step = (golden.integers(seed, name, shape[:2] + (1,), c.vocabulary) for name in ("first", "step"))
    ids = (first + step * np.arange(shape[2])) % c.vocabulary
    other = golden.integers(seed, "other", shape, c.vocabulary)
    ids = np.where(golden.uniform(seed, "where", shape) < 0.1, other, ids)
    return {"input.ids": ids.astype(np.int32).reshape(BATCHES, BATCH, c.groups, c.tokens)}


def shifted(ids):
    flat = ids.reshape(ids.shape[0], -1)
    return torch.cat((torch.zeros_like(flat[:, :1]), flat[:, :-1]), dim=1).reshape(ids.shape)


def cases():
    c = Config(kind="encoder", **SHAPE)
    yield "encoder", c, Classifier, labelled(61, c), \
        lambda net, x, labels: torch.nn.functional.cross_entropy(net(x), labels)
    c = Config(kind="diffusion", output_channels=4, condition_channels=3, self_conditioning="latent", **SHAPE)
    yield "diffusion", c, DiffusionDecoder, noised(62, c), \
        lambda net, x0, condition, eps, t: diffusion_loss(net, x0, eps, t, condition, SCHEDULE,
                                                          self_conditioning_rate=0.5)
    c = Config(kind="autoregressive", vocabulary=11, **SHAPE)
    yield "autoregressive", c, AutoregressiveDecoder, counted(63, c), \
        lambda net, ids: cross_entropy(net(shifted(ids)), ids)


def shrinks(name, values):
    return values.dim() >= 2 and not name.endswith(("positions", "embedding.weight"))


def run(config, make, given, loss_of):
    net = make(config)
    start = {}
    with torch.no_grad():
        for name, values in net.named_parameters():
            start["param." + name] = golden.parameter(config.kind, name, tuple(values.shape))
            values.copy_(torch.from_numpy(start["param." + name]))
    groups = [{"params": [v for n, v in net.named_parameters() if shrinks(n, v) == way], "weight_decay": decay}
              for way, decay in ((True, 0.05), (False, 0.0))]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))
    losses = []
    for step in range(STEPS):
        batch = [golden.tensor(values[step % BATCHES], torch.float32) for values in given.values()]
        loss = loss_of(net, *batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return start, np.array(losses, dtype=np.float32)


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else golden.HERE
    for name, config, make, given, loss_of in cases():
        start, losses = run(config, make, given, loss_of)
        golden.write_safetensors(os.path.join(folder, f"trajectory_{name}.safetensors"),
                                 {**start, **given, "output.losses": losses},
                                 {"kind": config.kind, "config": config.to_json()})
        print(f"{name}: loss {losses[0]:.4f} at first, {losses[49]:.4f} after 50 steps, {losses[-1]:.4f} at last")
