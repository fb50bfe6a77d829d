"""python3 tests/python_module.py FOLDER: tries examples/python_module.cpp, which was built into the folder."""
import os
import sys
import tempfile
import threading
import time

sys.path.insert(0, sys.argv[1])
import numpy as np

import fit_classifier as fit


def raises(call, *parts):
    try:
        call()
    except fit.Error as error:
        assert isinstance(error, ValueError)
        assert all(part in str(error) for part in parts), error
        return
    raise AssertionError("no error")


random = np.random.default_rng(1)
labels = np.arange(40, dtype=np.int32) % 5
x = random.normal(size=(40, 4, 16, 3)).astype(np.float32)
x += labels[:, None, None, None]

model, other = fit.Classifier(seed=3), fit.Classifier(seed=4)
logits = model(x)
assert logits.shape == (40, 5) and logits.dtype == np.float32
assert not np.array_equal(logits, other(x))
assert np.array_equal(model(x[::2]), logits[::2])                      # strides
assert np.array_equal(model(np.asfortranarray(x.astype(np.float64))), logits)  # another type and order

row_losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(40), labels]
assert abs(model.loss(x, labels) - row_losses.mean()) < 1e-5

first = model.train_step(x, labels, rate=3e-3)
for _ in range(60):
    last = model.train_step(x, labels, rate=3e-3)
assert last < first / 2, (first, last)

# Another thread ticks in the middle of one call, which it could not while the call held Python's lock.
many = np.repeat(x, 200, axis=0)
ticks, stop = [], threading.Event()


def tick():
    while not stop.is_set():
        ticks.append(time.monotonic())
        time.sleep(0.001)


thread = threading.Thread(target=tick)
thread.start()
began = time.monotonic()
model.loss(many, np.repeat(labels, 200))
ended = time.monotonic()
stop.set()
thread.join()
third = (ended - began) / 3
assert any(began + third < t < ended - third for t in ticks), (began, ended, len(ticks))

# Two threads train one model: one after the other, so it ends as by one thread that does as many steps.
alone, shared = fit.Classifier(seed=5), fit.Classifier(seed=5)
for _ in range(40):
    alone.train_step(x, labels)
threads = [threading.Thread(target=lambda: [shared.train_step(x, labels) for _ in range(20)]) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert np.array_equal(shared(x), alone(x))

with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "model.safetensors")
    model.save(path)
    other.load(path)
    assert np.array_equal(other(x), model(x))
    raises(lambda: model.load(os.path.join(folder, "none")), "none: no such file")

before = model(x)
raises(lambda: model(x[0]), "4 dimensions is needed, not one of 3")
raises(lambda: model(x[:, :3]), "[40, 3, 16, 3]")
raises(lambda: model.loss(x, labels[:7]), "a target for each of 40 rows, not 7")
raises(lambda: model.train_step(x, labels + 1), "must be in 0 .. 4, not 5")
raises(lambda: model.loss(x, labels.astype(np.int64) + 2**32), "a label must be a class, not 4294967296")
for wrong in labels + 0.5, [0.5] * 40, labels.astype(np.complex64), labels.astype(str):
    try:
        model.train_step(x, wrong)
    except TypeError:
        continue
    raise AssertionError("no error")
for kind in np.int64, np.uint8, np.int16, np.uint64:
    assert model.loss(x, labels.astype(kind)) == model.loss(x, labels)
raises(lambda: model.train_step(x, labels, rate=float("nan")), "learning rate")
assert np.array_equal(model(x), before)
