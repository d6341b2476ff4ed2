"""`METHODS` finds the discovery methods, and those of one's own, by name."""

from __future__ import annotations

from acdc.discovery.base import Method
from acdc.doors import Door

METHODS: Door[Method] = Door(
    base=Method,  # type: ignore[type-abstract]
    built_in={
        "acdc": "acdc.discovery.acdc:ACDC",
        "acdc_scores": "acdc.discovery.acdc_scores:ACDCScores",
        "eap": "acdc.discovery.eap:EAP",
        "eap_ig": "acdc.discovery.eap_ig:EAPIG",
        "clean_corrupted": "acdc.discovery.clean_corrupted:CleanCorrupted",
        "exact": "acdc.discovery.exact:Exact",
        "hisp": "acdc.discovery.hisp:HISP",
        "information_flow": "acdc.discovery.information_flow:InformationFlow",
        "subnetwork_probing": "acdc.discovery.subnetwork_probing:SubnetworkProbing",
        "edge_pruning": "acdc.discovery.edge_pruning:EdgePruning",
        "attribution_to_circuit": "acdc.discovery.attribution_to_circuit:AttributionToCircuit",
        "random": "acdc.discovery.random:Random",
    },
    entry_points="acdc.methods",
    what="a method",
)
