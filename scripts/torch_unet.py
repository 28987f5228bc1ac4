"""The same U-Net in PyTorch, which benchmark_step.py and benchmark_gpu.py run in a process of its own."""

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]


def double(inputs: int, outputs: int) -> nn.Sequential:
    """Twice: 3 x 3 convolution, batch normalisation, ReLU."""
    layers = []
    for width in (inputs, outputs):
        layers += [
            nn.Conv2d(width, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(True),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """One logit a pixel."""

    def __init__(self, base: int, depth: int):
        super().__init__()
        widths = [base * 2**level for level in range(depth + 1)]
        self.depth = depth
        self.down = nn.ModuleList(double(i, o) for i, o in zip([3, *widths], widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2, bias=False) for w in widths[:-1])
        self.merge = nn.ModuleList(double(2 * w, w) for w in widths[:-1])
        self.head = nn.Conv2d(base, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> [b, 1, h, w]."""
        skips = []
        for level, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for level in reversed(range(self.depth)):
            x = self.merge[level](torch.cat([self.up[level](x), skips[level]], 1))
        return self.head(x)
