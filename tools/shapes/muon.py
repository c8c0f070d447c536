"""Muon for tensors of two and more dimensions: momentum whose singular values are all made about one.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the scale that lets it share
AdamW's rates is from Liu et al., "Muon is scalable for LLM training" (2025). Kernels of convolutions count as
matrices of [out, in x kernel].
"""

import torch


def orthogonalised(g, steps=4):
    """Newton-Schulz iteration with the quintic of the Muon paper; g is [rows, columns]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[0] > g.shape[1]
    x = (g.mT if tall else g).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                g = p.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                update = orthogonalised(g) * (0.2 * max(g.shape) ** 0.5)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(update.view_as(p).to(p.dtype), alpha=group["lr"])
