"""inspected.py WHEEL...: what each of these wheels is, a line each; exit code 1 if one is not as we promise."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from elftools.elf.elffile import ELFFile

CORE = "vhostnet/_vhostnet.abi3.so"
NAME = re.compile(r"-cp310-abi3-(?:\w+\.)*?(manylinux|musllinux)_(\d+)_(\d+)_(x86_64|aarch64|s390x)(?:\.\w+)?\.whl$")
MACHINES = {"x86_64": ("EM_X86_64", True), "aarch64": ("EM_AARCH64", True), "s390x": ("EM_S390", False)}
LIBRARIES = {
    "manylinux": {"libc.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "ld64.so.1"},
    "musllinux": {"libc.musl-x86_64.so.1", "libc.musl-aarch64.so.1", "libc.musl-s390x.so.1"},
}
# Where branches and returns may go, as the loader reads it: what a machine has of it, by its bit. s390x has nothing.
PROPERTY = {
    "x86_64": ("GNU_PROPERTY_X86_FEATURE_1_AND", {"IBT": 1, "SHSTK": 2}),
    "aarch64": ("GNU_PROPERTY_AARCH64_FEATURE_1_AND", {"BTI": 1, "PAC": 2}),
    "s390x": ("", {}),
}
OF_THE_BUILDER = re.compile(rb"/(?:home|root|tmp|usr|work)/[\x20-\x7e]*")


@dataclass
class Found:
    facts: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def must(self, true: bool, fault: str) -> None:
        if not true:
            self.faults.append(fault)


def inspected(wheel: Path) -> Found:
    found = Found()
    name = NAME.search(wheel.name)
    if name is None:
        found.faults.append("its name is none of ours")
        return found
    libc, major, minor, machine = name.groups()
    with zipfile.ZipFile(wheel) as archive:
        look_at_record(found, archive)
        data = archive.read(CORE)
    elf = ELFFile(io.BytesIO(data))
    look_at_hardening(found, elf)
    look_at_branches(found, elf, machine)
    look_at_symbols(found, elf)
    look_at_libraries(found, elf, libc, (int(major), int(minor)))
    found.must((elf["e_machine"], elf.little_endian) == MACHINES[machine], f"it is for {elf['e_machine']}")
    for path in OF_THE_BUILDER.findall(data):
        found.faults.append(f"it knows where it was built: {path.decode()}")
    return found


def look_at_record(found: Found, archive: zipfile.ZipFile) -> None:
    """Every file is in it, with its size and its hash."""
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
    rows = {path: (digest, size) for path, digest, size in csv.reader(archive.read(name).decode().splitlines())}
    files = [file for file in archive.namelist() if not file.endswith("/")]
    found.must(sorted(rows) == sorted(files), f"RECORD has other files: {sorted(rows.keys() ^ set(files))}")
    for file in files:
        data = archive.read(file)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        if file != name:
            found.must(rows.get(file) == (f"sha256={digest}", str(len(data))), f"RECORD is wrong about {file}")
    found.facts.append(f"RECORD of {len(files)}")


def look_at_hardening(found: Found, elf: ELFFile) -> None:
    segments, imported = list(elf.iter_segments()), {symbol.name for symbol in symbols(elf)}
    kinds = {segment["p_type"] for segment in segments}
    writable_code = [segment["p_type"] for segment in segments if segment["p_flags"] & 3 == 3]
    found.must("PT_GNU_RELRO" in kinds, "no RELRO")
    found.must("PT_GNU_STACK" in kinds and not writable_code, f"writable code: {writable_code or 'the stack'}")
    flags = {tag.entry.d_tag: tag.entry.d_val for tag in dynamic(elf)}
    found.must(bool(flags.get("DT_FLAGS_1", 0) & 1), "no BIND_NOW")
    found.must("DT_TEXTREL" not in flags, "relocations in its code")
    found.must("__stack_chk_fail" in imported, "no stack protector")
    found.facts.append("RELRO, BIND_NOW, no writable code, stack protector")


def look_at_branches(found: Found, elf: ELFFile, machine: str) -> None:
    kind, bits = PROPERTY[machine]
    where = {segment["p_offset"] for segment in elf.iter_segments("PT_GNU_PROPERTY")}
    notes = [note for part in elf.iter_segments("PT_NOTE") if part["p_offset"] in where for note in part.iter_notes()]
    marked = sum(each.pr_data for note in notes for each in note["n_desc"] if each.pr_type == kind)
    for name, bit in bits.items():
        found.must(bool(marked & bit), f"not marked for {name}")
    found.facts.append(" and ".join(bits) or "no branch protection")


def look_at_symbols(found: Found, elf: ELFFile) -> None:
    exported = sorted(symbol.name for symbol in symbols(elf) if symbol["st_shndx"] != "SHN_UNDEF")
    found.must(exported == ["PyInit__vhostnet"], f"it exports {exported}")
    found.facts.append("one export")


def look_at_libraries(found: Found, elf: ELFFile, libc: str, promised: tuple[int, int]) -> None:
    tags = dynamic(elf)
    found.must(not {"DT_RPATH", "DT_RUNPATH"} & {tag.entry.d_tag for tag in tags}, "it looks for libraries by a path")
    needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
    found.must(needed <= LIBRARIES[libc], f"it needs {sorted(needed)}")
    newest = max(glibcs(elf), default=(0,))
    if libc == "manylinux":
        found.must(newest <= promised, f"it needs glibc {'.'.join(map(str, newest))}")
        found.facts.append(f"glibc {'.'.join(map(str, newest))}")
    else:
        found.must(newest == (0,), "it needs glibc")
        found.facts.append("musl")


def glibcs(elf: ELFFile) -> Iterator[tuple[int, ...]]:
    """The versions of glibc's symbols that it has; no number, of what is private, is newer than all."""
    section = elf.get_section_by_name(".gnu.version_r")
    for _, versions in section.iter_versions() if section else ():
        for version in versions:
            number = re.fullmatch(r"GLIBC_([0-9.]+)", version.name)
            yield tuple(map(int, number[1].split("."))) if number else (999,)


def symbols(elf: ELFFile) -> list:
    return list(elf.get_section_by_name(".dynsym").iter_symbols())


def dynamic(elf: ELFFile) -> list:
    (segment,) = elf.iter_segments("PT_DYNAMIC")
    return list(segment.iter_tags())


def main(*wheels: str) -> int:
    status = 0
    for wheel in map(Path, wheels):
        found = inspected(wheel)
        print(f"{wheel.name}: {'; '.join(['NO: ' + each for each in found.faults] or found.facts)}")
        status |= bool(found.faults)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
