"""What a process does to a folder, seen from outside: strace tells of each call, and each call becomes an operation of
a simulated disk. What the disk does not know is refused, never passed over."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.power_loss import ROOT, Cut, Disk, Mark, Names, Node, Operation, Place, Sync, Write

_TRACED = (
    "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,rename,renameat,renameat2,link,linkat,symlink,symlinkat,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,ftruncate,truncate,fallocate,copy_file_range,sendfile,ioctl,"
    "mmap,lseek"
)
_CALL = re.compile(r"(?P<pid>\d+) +(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
_BEGUN = re.compile(r"(?P<pid>\d+) +(?P<begin>\w+\(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"(?P<pid>\d+) +<\.\.\. \w+ resumed>(?P<end>.*)")
_REPOSITORY = Path(__file__).parents[1]
_MARKS = "/nst-power-loss/"
# SQLite makes it anew from the log when the database is opened after a crash.
_REBUILT = "-shm"


def mark(name: str) -> None:
    """Say in the trace of this process that something begins here."""
    try:
        os.close(os.open(f"{_MARKS}{name}", os.O_RDONLY))
    except FileNotFoundError:
        return


def can_trace() -> bool:
    """Whether strace is here and this process may trace others."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-f", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


def trace(command: Sequence[str], folder: Path, *, log: Path) -> list[Operation]:
    """Run a command and return what it does to a folder, which begins with what is there before."""
    traced = _Trace(folder)
    strace = ["strace", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "100000000", "-o", str(log), "-e", f"trace={_TRACED}"]
    subprocess.run([*strace, *command], check=True, cwd=_REPOSITORY)
    with log.open(encoding="ascii") as lines:
        for line in _whole_calls(lines):
            traced.read(line)
    return traced.operations


def _whole_calls(lines: Iterable[str]) -> Iterator[re.Match[str]]:
    """The calls in the order in which they ended, also where another thread's came between."""
    begun: dict[str, str] = {}
    for line in lines:
        if cut := _BEGUN.match(line):
            begun[cut["pid"]] = cut["begin"]
            continue
        if resumed := _RESUMED.match(line):
            line = f"{resumed['pid']} {begun.pop(resumed['pid'])}{resumed['end']}"
        if call := _CALL.match(line):
            yield call


class _Trace:
    """What the calls of a process do to one folder."""

    def __init__(self, folder: Path) -> None:
        self.operations: list[Operation] = []
        self._folder = str(folder.resolve())
        self._disk = Disk()
        self._nodes = 0
        self._offsets: dict[str, int] = {}
        for path in sorted(folder.rglob("*")):
            node = self._make(str(path), is_folder=path.is_dir())
            if not node.is_folder:
                self._do(Write(node, 0, path.read_bytes()))
            self._do(Sync(node))
            self._do(Sync(self._place(str(path))[0]))

    def read(self, call: re.Match[str]) -> None:
        """Take in one call."""
        name, result, arguments = call["name"], int(call["result"]), call["arguments"].split(", ")
        if name.startswith("open") and _path(arguments).startswith(_MARKS):
            self._do(Mark(_path(arguments).removeprefix(_MARKS)))
        elif result >= 0:
            getattr(self, f"_{name}")(arguments, result)

    def _do(self, operation: Operation) -> None:
        self.operations.append(operation)
        self._disk.do(operation)

    def _make(self, path: str, *, is_folder: bool) -> Node:
        self._nodes += 1
        node = Node(self._nodes, is_folder)
        self._do(Names({self._place(path): node}))
        return node

    def _is_ours(self, path: str) -> bool:
        return path.startswith(f"{self._folder}/") and not path.endswith(_REBUILT)

    def _place(self, path: str) -> Place:
        folder, name = path.rsplit("/", 1)
        node = ROOT if folder == self._folder else self._disk.names[self._place(folder)]
        return node, name

    def _node(self, path: str) -> Node | None:
        """The file or folder at a path, where it is one of ours."""
        if path == self._folder:
            return ROOT
        return self._disk.names[self._place(path)] if self._is_ours(path) else None

    def _openat(self, arguments: list[str], result: int) -> None:
        path, flags = _path(arguments), arguments[2]
        # Of a file without a name nothing is left.
        if not self._is_ours(path) or "O_TMPFILE" in flags:
            return
        if self._place(path) not in self._disk.names:
            self._make(path, is_folder=False)
        node = self._disk.names[self._place(path)]
        if "O_TRUNC" in flags and self._disk.content(node):
            self._do(Cut(node, 0))
        self._offsets[str(result)] = len(self._disk.content(node)) if "O_APPEND" in flags else 0

    def _write_at(self, descriptor: str, data: bytes, offset: int) -> None:
        node = self._node(_fd_path(descriptor))
        if node is not None and data:
            self._do(Write(node, offset, data))

    def _write_on(self, descriptor: str, data: bytes) -> None:
        number = descriptor.partition("<")[0]
        if self._is_ours(_fd_path(descriptor)):
            self._write_at(descriptor, data, self._offsets[number])
            self._offsets[number] += len(data)

    def _write(self, arguments: list[str], result: int) -> None:
        self._write_on(arguments[0], _bytes(arguments[1])[:result])

    def _writev(self, arguments: list[str], result: int) -> None:
        parts = [_bytes(each) for each in arguments if "iov_base=" in each]
        self._write_on(arguments[0], b"".join(parts)[:result])

    def _pwrite64(self, arguments: list[str], result: int) -> None:
        self._write_at(arguments[0], _bytes(arguments[1])[:result], int(arguments[3]))

    def _sendfile(self, arguments: list[str], result: int) -> None:
        if not self._is_ours(_fd_path(arguments[0])):
            return
        source, begin = self._node(_fd_path(arguments[1])), int(arguments[2].partition("]")[0].removeprefix("["))
        content = Path(_fd_path(arguments[1])).read_bytes() if source is None else self._disk.content(source)
        self._write_on(arguments[0], content[begin : begin + result])

    def _lseek(self, arguments: list[str], result: int) -> None:
        self._offsets[arguments[0].partition("<")[0]] = result

    def _ftruncate(self, arguments: list[str], _result: int) -> None:
        if (node := self._node(_fd_path(arguments[0]))) is not None:
            self._do(Cut(node, int(arguments[1])))

    def _fsync(self, arguments: list[str], _result: int) -> None:
        if (node := self._node(_fd_path(arguments[0]))) is not None:
            self._do(Sync(node))

    _fdatasync = _fsync

    def _mkdir(self, arguments: list[str], _result: int) -> None:
        if self._is_ours(_path(arguments)):
            self._make(_path(arguments), is_folder=True)

    _mkdirat = _mkdir

    def _unlink(self, arguments: list[str], _result: int) -> None:
        if self._is_ours(_path(arguments)):
            self._do(Names({self._place(_path(arguments)): None}))

    _unlinkat = _rmdir = _unlink

    def _link(self, arguments: list[str], _result: int) -> None:
        source, target = _paths(arguments)
        if self._is_ours(target):
            self._do(Names({self._place(target): self._disk.names[self._place(source)]}))

    _linkat = _link

    def _rename(self, arguments: list[str], _result: int) -> None:
        source, target = _paths(arguments)
        if self._is_ours(target):
            origin = self._place(source)
            self._do(Names({origin: None, self._place(target): self._disk.names[origin]}))

    _renameat = _renameat2 = _rename

    def _mmap(self, arguments: list[str], _result: int) -> None:
        if "PROT_WRITE" in arguments[2] and "MAP_SHARED" in arguments[3]:
            self._refuse(arguments)

    def _ioctl(self, arguments: list[str], _result: int) -> None:
        if "CLONE" in arguments[1]:
            self._refuse(arguments)

    def _refuse(self, arguments: list[str], _result: int = 0) -> None:
        if any(self._is_ours(_fd_path(each)) for each in arguments if "<" in each):
            raise ValueError(f"The simulated disk does not know what {arguments} does; teach it.")

    _copy_file_range = _fallocate = _pwritev = _pwritev2 = _refuse

    def _of_no_account(self, arguments: list[str], _result: int) -> None:
        if any(self._is_ours(_text(each)) for each in arguments if each.startswith('"')):
            raise ValueError(f"The simulated disk does not know what {arguments} does; teach it.")

    _open = _creat = _truncate = _symlink = _symlinkat = _of_no_account


def _bytes(shown: str) -> bytes:
    return bytes.fromhex(shown[shown.index('"') + 1 : shown.rindex('"')].replace("\\x", ""))


def _text(shown: str) -> str:
    return os.fsdecode(_bytes(shown))


def _fd_path(shown: str) -> str:
    """The path that strace tells of a descriptor: 3<\\x2f\\x64...>."""
    path = re.search(r"<((?:\\x[0-9a-f]{2})+)>", shown)
    return os.fsdecode(bytes.fromhex(path[1].replace("\\x", ""))) if path else ""


def _paths(arguments: Sequence[str]) -> list[str]:
    """The absolute paths that a call names, each in the folder that is given before it."""
    paths = []
    for before, shown in zip(["", *arguments], arguments, strict=False):
        if shown.startswith('"'):
            folder = _fd_path(before) if "<" in before else "/"
            paths.append(str(Path(folder, _text(shown))))
    return paths


def _path(arguments: Sequence[str]) -> str:
    return _paths(arguments)[0]
