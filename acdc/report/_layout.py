"""A stand-in for the `dot` program: lays out the DOT on standard input with the Graphviz inside pygraphviz's wheel.

    python _layout.py -Tsvg -o circuit.svg -Tpng -o circuit.png

Run as a process of its own, so that it can be stopped, cannot take the caller down, and reads its fonts from the
environment it is given (fontconfig looks only once a process).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pygraphviz
from pygraphviz import graphviz


def main(arguments: Sequence[str]) -> int:
    formats = [argument.removeprefix("-T") for argument in arguments[0::3]]
    graph = pygraphviz.AGraph(string=sys.stdin.buffer.read().decode())  # its handle lives no longer than it
    context = graphviz.gvContextWithBuiltins()
    if graphviz.gvLayout(context, graph.handle, b"dot"):
        return 1
    # One layout serves every format; AGraph.draw would lay out once for each.
    for kind, path in zip(formats, arguments[2::3], strict=True):
        with open(path, "wb") as file:
            if graphviz.gvRender(context, graph.handle, kind.encode(), file):
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
