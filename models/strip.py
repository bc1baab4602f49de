"""Removes from an exported model what names the exporting machine: stack traces and doc strings, also inside branches."""

from __future__ import annotations

import onnx

SCOPES = "pkg.torch.onnx.name_scopes"


def strip(proto: onnx.ModelProto) -> None:
    """Keep the module scopes of the nodes; drop every other metadata entry and doc string, in place."""
    del proto.metadata_props[:]
    proto.ClearField("doc_string")
    _strip_graph(proto.graph)


def _strip_graph(graph: onnx.GraphProto) -> None:
    del graph.metadata_props[:]
    graph.ClearField("doc_string")
    for node in graph.node:
        node.ClearField("doc_string")
        kept = [entry for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        for attribute in node.attribute:
            for branch in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _strip_graph(branch)
