"""A brute-force ACDC, the truth the tests hold the package to: it shares no code with it and imports nothing of it.

The rules are the original's (Conmy et al. 2023): one loop per port, one full evaluation per tested edge, in float64
unless told otherwise. A model is a GPT-2, Llama or GPT-NeoX of Hugging Face or a native model of TransformerLens, in a
bridge or not, or what `read` made of one. Edges are tuples (sender, receiver) with MIB's names, ("m0", "a1.h0<q>");
tokens are [pair, pos], outputs {sender: [pair, pos, d_model]}, logits [pair, pos, vocab].
"""

from types import SimpleNamespace as Parts

import torch

PLACES = {  # embeddings of tokens and positions; layers, and in one: two norms, W_O; last norm
    "gpt2": "wte wpe h ln_1 ln_2 attn.c_proj ln_f",
    "llama": "embed_tokens - layers input_layernorm post_attention_layernorm self_attn.o_proj norm",
    "gpt_neox": "embed_in - layers input_layernorm post_attention_layernorm attention.dense final_layer_norm",
    "native": "tok_embed pos layers ln1 ln2 attn.o ln_out",
}


def read(model, dtype=torch.float64):
    """The model's own modules, the weights of its heads; every port's senders (in test order) and bias, in `ports`."""
    if isinstance(model, Parts):
        return model
    model = getattr(model, "original_model", model)
    native = not hasattr(model, "config")
    weights = {name.replace("_original_component.", ""): x for name, x in model.state_dict().items()}
    model = type(model)(model.cfg if native else model.config).to(dtype).eval()  # a copy without a bridge's wrappers
    assert not model.load_state_dict(weights, strict=False).missing_keys
    for rms in [m for m in model.modules() if "LlamaRMSNorm" in str(type(m))]:  # its own is float32
        rms.forward = lambda x, m=rms: torch.rms_norm(x, x.shape[-1:], m.weight, m.variance_epsilon)
    c, family = (model.cfg, "native") if native else (model.config, model.config.model_type)
    tok, pos, layers, norm1, norm2, w_o, last_norm = PLACES[family].split()
    body, head = (model, model.head) if native else (model.base_model, model.lm_head)
    n_heads, attn_only = (c.n_heads, c.attn_only) if native else (c.num_attention_heads, False)

    def qkv(block):  # of q, k and v: weight [head, d_head, d_model] and bias [head, d_head]
        if family == "gpt2":  # Conv1D keeps its weights [in, out]
            one = block.attn.c_attn
            return [[x.unflatten(0, (3, n_heads, -1))[i] for x in (one.weight.T, one.bias)] for i in range(3)]
        if family == "gpt_neox":
            one = block.attention.query_key_value
            return [[x.unflatten(0, (n_heads, 3, -1))[:, i] for x in (one.weight, one.bias)] for i in range(3)]
        three = [block.get_submodule(f"attn.{x}" if native else f"self_attn.{x}_proj") for x in "qkv"]
        both = [[x.weight, x.weight[:, 0] * 0 if x.bias is None else x.bias] for x in three]
        both = [[x.unflatten(0, (-1, len(three[0].weight) // n_heads)) for x in pair] for pair in both]
        return [[x.repeat_interleave(n_heads // len(x), 0) for x in pair] for pair in both]  # groups share k and v

    p = Parts(heads=range(n_heads), layers=[], ports={}, causal=not native or c.attention_dir == "causal")
    p.tok, p.unembed = body.get_submodule(tok), lambda x: head(body.get_submodule(last_norm)(x))
    p.pos, p.rotary = (lambda _: 0, body.rotary_emb) if pos == "-" else (body.get_submodule(pos), None)
    seen, bias = ["input"], torch.zeros((), dtype=dtype)  # the senders and the attention output biases so far
    for i, block in enumerate(body.get_submodule(layers)):
        o, mlp = block.get_submodule(w_o), None if attn_only else lambda x, b=block: b.mlp(b.get_submodule(norm2)(x))
        w = (o.weight.T if family == "gpt2" else o.weight).unflatten(1, (n_heads, -1))  # [d_model, head, d_head]
        p.layers.append(Parts(norm=block.get_submodule(norm1), qkv=qkv(block), o=w, mlp=mlp))
        p.ports |= {f"a{i}.h{h}<{x}>": (seen, bias) for h in p.heads for x in "qkv"}
        own, after = [f"a{i}.h{h}" for h in reversed(p.heads)], bias if o.bias is None else bias + o.bias
        if mlp:
            p.ports[f"m{i}"] = (seen, bias) if getattr(c, "use_parallel_residual", False) else (own + seen, after)
        seen, bias = [f"m{i}"] * bool(mlp) + own + seen, after
    p.ports["logits"] = seen, bias
    return p


def order(model, projection_edges=False):
    """Every receiver with its senders, in the order of the test."""
    p, receivers = read(model), ["logits"]
    for i in reversed(range(len(p.layers))):
        receivers += [f"m{i}"] if p.layers[i].mlp else []
        for a, b in ["[]", "<>"] if projection_edges else ["<>"]:
            receivers += [f"a{i}.h{h}{a}{x}{b}" for x in "vkq" for h in reversed(p.heads)]
    return [(r, [r.replace("[", "<").replace("]", ">")] if "[" in r else p.ports[r][0]) for r in receivers]


@torch.no_grad()
def evaluate(model, tokens, present=(), carried=None, projection_edges=False):
    """(logits, outputs) with only the `present` edges kept, others carrying `carried`; None: the whole model's."""
    p, position = read(model), torch.arange(tokens.shape[1])
    outputs = {"input": p.tok(tokens) + p.pos(position)}

    def value(port, keep=True):
        (senders, bias), without = p.ports[port], outputs if carried is None else carried
        x = bias + sum(without[s] for s in senders)
        return x + sum(outputs[s] - without[s] for s in senders if keep and (s, port) in present)

    def project(i, h, letter):
        port, (w, b) = f"a{i}.h{h}<{letter}>", (x[h] for x in p.layers[i].qkv["qkv".index(letter)])
        x = value(port, keep=not projection_edges or (port, f"a{i}.h{h}[{letter}]") in present)
        x = p.layers[i].norm(x) @ w.T + b
        if p.rotary is None or letter == "v":
            return x
        cos, sin = p.rotary(x, position[None])
        first, second, rest = x.tensor_split([cos.shape[-1] // 2, cos.shape[-1]], -1)
        return torch.cat([torch.cat([first, second], -1) * cos + torch.cat([-second, first], -1) * sin, rest], -1)

    for i, layer in enumerate(p.layers):
        for h in p.heads:
            q, k, v = (project(i, h, letter) for letter in "qkv")
            scores = q @ k.mT / q.shape[-1] ** 0.5
            scores = scores + torch.full_like(scores, -torch.inf).triu(1) if p.causal else scores
            outputs[f"a{i}.h{h}"] = scores.softmax(-1) @ v @ layer.o[:, h].T
        if layer.mlp:
            outputs[f"m{i}"] = layer.mlp(value(f"m{i}"))
    return p.unembed(value("logits")), outputs


def ablated(model, corrupted, kind="corrupted"):
    """What removed edges carry: the output of the corrupted run, its mean over the pairs at each position, or zero."""
    change = {"corrupted": lambda x: x, "zero": torch.zeros_like, "mean": lambda x: x.mean(0).expand_as(x)}[kind]
    return {sender: change(x) for sender, x in evaluate(model, corrupted)[1].items()}


def loss(metric, logits, full, answers=None, wrong=None, positions=-1):
    """What ACDC minimises: `kl_div`, `logit_diff`, or a function of the logits [pair, vocab] and the whole model's."""
    logits, full = (x[torch.arange(len(x)), torch.as_tensor(positions)] for x in (logits, full))
    if metric == "logit_diff":
        right, wrong = (logits.gather(1, torch.as_tensor(x).view(len(x), -1)).mean(1) for x in (answers, wrong))
        return -(right - wrong).mean().item()
    if metric == "kl_div":
        return (full.softmax(-1) * (full.log_softmax(-1) - logits.log_softmax(-1))).sum(-1).mean().item()
    return float(metric(logits, full))


def acdc(model, clean, corrupted, metric, threshold, ablation="corrupted", projection_edges=False, **where):
    """([(sender, receiver, effect, kept)] as tested, {(sender, receiver): effect} of the kept); `where`: see `loss`."""
    p, tested = read(model), []
    carried, (full, _) = ablated(p, corrupted, ablation), evaluate(p, clean)
    present = {(sender, receiver) for receiver, senders in order(p, projection_edges) for sender in senders}

    def now():
        return loss(metric, evaluate(p, clean, present, carried, projection_edges)[0], full, **where)

    current = now()
    for receiver, senders in order(p, projection_edges):
        node = receiver.split("<")[0].split("[")[0]
        used = node == "logits" or any(sender == node for sender, _ in present)
        if projection_edges and "<" in receiver:
            used = used and (receiver, receiver.replace("<", "[").replace(">", "]")) in present
        for sender in senders:
            present.remove((sender, receiver))
            if used:
                new = now()
                kept = not new - current < threshold
                tested.append((sender, receiver, new - current, kept))
                present |= {(sender, receiver)} if kept else set()
                current = current if kept else new
    return tested, {(sender, receiver): effect for sender, receiver, effect, kept in tested if kept}
