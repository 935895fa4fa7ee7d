"""What is known of a layer's inputs and of the gradients at its outputs; ``calibrate`` gathers it.

With x the inputs of a layer and g the gradients of a random probe (``probes``) at its outputs:

    mean, covariance    mu = E[x],  A = E[(x - mu)(x - mu)^T]        what outputs depend on; outlying samples
                                                                     weigh less (``first_look``)
    held_out            x - mu of samples held out, weighed alike    what roundings are compared on
    output_moment       G = E[g g^T]                                 which outputs the network listens to
    gradient_moment     B = E_sample[Gamma^T Gamma],   Gamma = sum_t g_t (x_t - mu)^T of one sample
    probes              x and g, or Gamma, of samples held out       what ``prediction`` makes prices of

The inputs of a convolution are the patches of its input (``convolution``).

Source: A and G are the Kronecker factors of K-FAC (Martens and Grosse, arXiv 1503.05671; of convolutions,
Grosse and Martens, arXiv 1602.01407); the gradient-weighted moment follows GuidedQuant (arXiv 2505.07004).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ProbedRows:
    """Held-out inputs x [rows, in] (ids [rows] of a table) and gradients g [rows, out] of one batch.

    ``lengths`` are the numbers of rows of each sample, in order; ``count`` is how many errors the samples
    stand for.
    """

    x: Tensor
    g: Tensor
    lengths: tuple[int, ...]
    count: int

    @property
    def nbytes(self) -> int:
        return self.x.nbytes + self.g.nbytes


@dataclass(frozen=True)
class ProbedGammas:
    """Gamma [samples, out, in] of one held-out batch: of a convolution smaller than its patches.

    Of a stored weight it is the gradient of the probe at the weight, [1, rows, columns]: the whole batch is
    one sample, as probes of its samples are independent, and their cross terms vanish in expectation.
    """

    gammas: Tensor
    count: int

    @property
    def nbytes(self) -> int:
        return self.gammas.nbytes


@dataclass(frozen=True)
class LayerStatistics:
    """See the module's docstring.

    Shapes: ``mean`` [in], ``samples`` and ``held_out`` [n, in], A and B [in, in], G [out, out]. Of very
    wide inputs A and B are their diagonals [in] (``moments``).

    A table and a grouped convolution have ``probes`` and ``output_moment`` only, a stored weight has
    ``probes``. Without gradients there are no G, B and probes, and with them no ``samples``.
    """

    count: int
    mean: Tensor | None = None
    covariance: Tensor | None = None
    samples: Tensor | None = None
    output_moment: Tensor | None = None
    gradient_moment: Tensor | None = None
    probes: tuple[ProbedRows | ProbedGammas, ...] = ()
    held_out: Tensor | None = None
