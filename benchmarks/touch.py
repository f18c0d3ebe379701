"""One small call of every op, forward and backward, with sizes that no vector width divides: for the sanitizers."""

import argparse

import torch

from fastdl import info


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    device = torch.device(parser.parse_args().device)
    for name, sample in info.samples(device, gradients=True).items():
        output = sample()
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.square().sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(name, flush=True)


if __name__ == "__main__":
    main()
