"""A plugin of pytest for machines without a GPU: kernels of Triton are translated for an H200 instead of launched.

As far as Triton's own intermediate code, so that types, shapes and names of all that a kernel holds must fit; the
interpreter of Triton, which runs kernels as Python, sees neither bfloat16 nor branches that are not taken.
Results stay as `torch.empty` left them, so tests fail; what counts are the kernels that are told at the end.
"""

import triton.compiler
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime import driver, jit

TARGET = GPUTarget("cuda", 90, 32)
KERNELS: set[tuple] = set()
ERRORS: dict[str, str] = {}


class Device:
    """What Triton asks of a driver."""

    def get_current_target(self):
        return TARGET

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


class Translated:
    """What is kept in place of a compiled kernel."""

    def result(self):
        return self


def translate(source, target=None, options=None, **_):
    """Stand for `triton.compile`."""
    backend = make_backend(TARGET)
    options = backend.parse_options({**(options or {}), **source.parse_options()})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    try:
        source.make_ir(TARGET, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
    except Exception as error:
        ERRORS[source.name] = str(error)
        raise
    KERNELS.add((source.name, str(source.signature), str(source.constants)))
    return Translated()


def pytest_configure():
    """Put it all in place, before a room is imported."""
    driver.set_active(Device())
    triton.compiler.compile = translate
    run = jit.JITFunction.run
    jit.JITFunction.run = lambda self, *args, grid, warmup, **options: run(self, *args, grid=grid, warmup=True,
                                                                            **options)
    from serrate.ops import direct

    direct.no_triton.__code__ = (lambda device: None).__code__  # rooms have the function itself


def pytest_terminal_summary(terminalreporter):
    """Tell how many kernels there were, and which did not fit."""
    for name, error in ERRORS.items():
        terminalreporter.write_line(f"cannot be translated: {name}: {error}")
    terminalreporter.write_line(f"translated: {len(KERNELS)}")
