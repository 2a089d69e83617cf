"""When does computing begin that no loader's batch announces? At the first call of a module that holds parameters.

Between steps, one hook on all modules waits for that call and takes itself away again: within a step, modules are
called as without the probe. While a script evaluates by hand the hook stays (about 1 us a module), since nothing else
tells when training goes on.

Code that torch has compiled must never see the hook: it would be compiled in, or make the code compile anew. The hook
is taken away before compiled code is entered, and that entry is the sign itself.
"""

from __future__ import annotations

# ruff: noqa: SLF001, N807 (the compiler offers no public hooks)
import functools
import threading
import weakref
from types import ModuleType
from typing import Any, Callable, Dict, Tuple

from amdahl_probe.guarding import Switch, guarded
from amdahl_probe.hook import ImportWatcher

#: Modules remembered: more than a script calls from outside.
MAX_KNOWN = 256

#: Told of a forward pass: whether gradients are recorded, and whether the module is in training mode.
Begin = Callable[[bool, bool], None]


class Forwards:
    """The hook: wanted from `watch` to `ignore`, and in place then unless compiled code runs."""

    def __init__(self, probe: Switch, torch: Any, begin: Begin) -> None:
        self.probe = probe
        self._begin = begin
        self._module_class = torch.nn.Module
        self._is_grad_enabled = torch.is_grad_enabled
        handle = torch.nn.modules.module.register_module_forward_pre_hook(self.see_call)
        self._hooks, self._id, self._see_call = handle.hooks_dict_ref(), handle.id, self.see_call
        self._known: Dict[int, Tuple[Any, bool]] = {}
        self._is_wanted = False
        self._thread = 0
        self._depth = 0  # of compiled code entered by that thread
        self.ignore()

    def watch(self) -> None:
        """Wait for the next call, in this thread."""
        self._is_wanted = True
        self._thread = threading.get_ident()
        if not self._depth:
            self._hooks[self._id] = self._see_call

    def ignore(self) -> None:
        """Wait no longer."""
        self._is_wanted = False
        self._hooks.pop(self._id, None)

    @guarded
    def see_call(self, module: Any, _inputs: Any) -> None:
        """A module is called."""
        if self._thread == threading.get_ident() and self._holds_parameters(module):
            self._begin(self._is_grad_enabled(), module.training)

    @guarded
    def follow(self, context: Any, code: Any) -> None:
        """Code is being compiled: let it tell when it is entered, and when it is left."""

        def enter() -> Callable[[], None]:
            self.enter_compiled(code)
            return self.leave_compiled

        if hasattr(context, "enter_exit_hooks"):
            context.enter_exit_hooks.append(enter)
        else:  # before torch 2.3 it tells its entry alone
            before = context.on_enter
            context.on_enter = lambda: (before(), self.pass_compiled(code))

    @guarded
    def enter_compiled(self, code: Any) -> None:
        """Compiled code is entered, by whatever thread; `leave_compiled` must follow."""
        self.pass_compiled(code)
        if self._thread == threading.get_ident():
            self._depth += 1

    @guarded
    def leave_compiled(self) -> None:
        """It has returned, or raised."""
        if self._thread == threading.get_ident():
            self._depth -= 1
            if self._is_wanted:
                self.watch()

    @guarded
    def pass_compiled(self, code: Any) -> None:
        """Compiled code is entered: a module, a method of one, or a function.

        A function is taken for a forward pass when gradients are recorded, and for nothing otherwise.
        """
        self._hooks.pop(self._id, None)
        if not self._is_wanted or self._thread != threading.get_ident():
            return
        owner = getattr(code, "__self__", code)
        if isinstance(owner, self._module_class):
            self.see_call(owner, None)
        elif self._is_grad_enabled():
            self._begin(True, True)

    def _holds_parameters(self, module: Any) -> bool:
        """Whether it is a model or a part of one; transforms, losses and metrics usually are not."""
        known = self._known.get(id(module))
        if known is None or known[0]() is not module:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            holds = next(iter(module.parameters()), None) is not None
            known = self._known[id(module)] = (weakref.ref(module), holds)
        return known[1]


def install(forwards: Forwards, watcher: ImportWatcher) -> None:
    """Watch compiled code too, once the compiler is imported."""

    def install_compiled(_: ModuleType) -> None:
        try:
            from torch._dynamo import eval_frame

            _patch_compiler(forwards, eval_frame._TorchDynamoContext)
            if "__call__" in vars(eval_frame.OptimizedModule):  # warns of hooks on all modules, since torch 2.8
                _patch_call(forwards, eval_frame.OptimizedModule)
        except Exception as error:
            forwards.probe.disable(f"patching the compiler: {error!r}")

    watcher.call_after("torch._dynamo", install_compiled)


def _patch_compiler(forwards: Forwards, context_class: Any) -> None:
    """Let all that is compiled from now on be followed."""
    original = context_class.__call__

    @functools.wraps(original)
    def __call__(self: Any, code: Any) -> Any:
        forwards.follow(self, code)
        return original(self, code)

    context_class.__call__ = __call__


def _patch_call(forwards: Forwards, module_class: Any) -> None:
    original = module_class.__call__

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        forwards.enter_compiled(self)
        try:
            return original(self, *args, **kwargs)
        finally:
            forwards.leave_compiled()

    module_class.__call__ = __call__
