"""Moving averages of the weights, beyond what the step's own pass does."""

from torch import Tensor
from torch.optim.optimizer import Optimizer


class AveragedOptimizer(Optimizer):
    """Mixin: averages kept under "ema" in the states, where a group's ema_decay is set."""

    def ema_parameters(self) -> list[Tensor]:
        """Return the averages of all parameters in the order of param_groups; of one that never moved, itself.

        Raises RuntimeError where ema_decay is not set.
        """
        averages = []
        for group in self.param_groups:
            if group["ema_decay"] is None:
                raise RuntimeError(f"{type(self).__name__}.ema_parameters: no averages are kept; set ema_decay=0.999")
            averages += [self.state.get(p, {}).get("ema", p.detach()) for p in group["params"]]
        return averages

    def _average_still(self, found_inf: Tensor | None) -> None:
        """Move the averages of parameters that have no gradient this time: they too decay towards the parameter."""
        for group in self.param_groups:
            if group["ema_decay"] is None:
                continue
            for p in group["params"]:
                if p.grad is None and "ema" in self.state.get(p, {}):
                    ema = self.state[p]["ema"]
                    weight: float | Tensor = 1 - group["ema_decay"]
                    if found_inf is not None:
                        weight = (weight * (found_inf == 0)).to(ema)
                    ema.lerp_(self.state[p].get("master_param", p.detach()).to(ema.dtype), weight)
