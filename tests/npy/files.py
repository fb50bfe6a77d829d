"""The files beside this one, as NumPy writes them, and a look at those that npy_test writes.

    python3 tests/npy/files.py write tests/npy
    python3 tests/npy/files.py check FOLDER   # of what npy_test left there
"""
import pathlib
import sys

import numpy as np


def values(shape, dtype):
    """Row-major: 7 i mod 11 - 3, halved for floating point, and whether a third of i is whole for bool."""
    i = np.arange(int(np.prod(shape)))
    kind = np.dtype(dtype).kind
    flat = i % 3 == 0 if kind == "b" else i * 7 % 11 if kind == "u" else i * 7 % 11 - 3
    return (flat / 2 if kind == "f" else flat).astype(dtype).reshape(shape)


ARRAYS = {
    "f4": ((3, 4), "<f4"), "f8": ((2, 3), "<f8"), "f2": ((5,), "<f2"), "i8": ((2, 2), "<i8"), "i4": ((7,), "<i4"),
    "i2": ((3,), "<i2"), "i1": ((3,), "|i1"), "u8": ((3,), "<u8"), "u4": ((3,), "<u4"), "u2": ((3,), "<u2"),
    "u1": ((4, 3), "|u1"), "b1": ((9,), "|b1"), "big_f4": ((3, 4), ">f4"), "big_i8": ((2, 3), ">i8"),
    "number": ((), "<f8"), "empty": ((0, 3), "<f4"), "four": ((2, 3, 4, 5), "<f4"),
}


def write(folder):
    for name, (shape, dtype) in ARRAYS.items():
        np.save(folder / f"{name}.npy", values(shape, dtype))
    np.save(folder / "fortran.npy", np.asfortranarray(values((2, 3, 5), "<f4")))
    np.save(folder / "fortran_big.npy", np.asfortranarray(values((4, 3), ">i4")))
    for version in (2, 3):
        with open(folder / f"version_{version}.npy", "wb") as file:
            np.lib.format.write_array(file, values((3, 4), "<f4"), version=(version, 0))
    np.save(folder / "records.npy", np.zeros(3, dtype=[("a", "<f4"), ("b", "<i4")]))
    np.save(folder / "complex.npy", np.zeros(3, dtype="<c8"))
    np.save(folder / "text.npy", np.array(["a", "bc"]))
    several = {"x": values((3, 4), "<f4"), "y": values((100, 50), "<i4"), "a long name": values((2,), "|b1")}
    np.savez(folder / "plain.npz", **several)
    np.savez_compressed(folder / "deflated.npz", **several)


def check(folder):
    names = [name for name in ARRAYS if not name.startswith("big")]
    for name in names:
        expected = values(*ARRAYS[name])
        alone = [folder / f"{name}.npy"] if name != "f2" else []  # C++ has no type of these numbers
        for found in (*map(np.load, alone), *(np.load(folder / z)[name] for z in ("plain.npz", "deflated.npz"))):
            assert found.dtype == expected.dtype and found.shape == expected.shape, (name, found.dtype, found.shape)
            assert found.flags.c_contiguous and np.array_equal(found, expected), name
    for name in ("plain.npz", "deflated.npz"):
        assert len(np.load(folder / name).files) == len(names), name


{"write": write, "check": check}[sys.argv[1]](pathlib.Path(sys.argv[2]))
