"""Where TransformerLens' bridge has the sites that can be patched: the hook of each kind, behind `blocks.LAYER.`."""

from __future__ import annotations

HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_attn_out",  # the bridge's own hook_resid_mid is what the MLP reads, not the stream around it
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "head_output": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
    "neuron": "mlp.hook_post",
}
