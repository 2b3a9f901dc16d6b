"""Programs that do not solve their task and want to pass all the same: by ending, patching, reading or overruling.

The task is `add(a, b)`; every program here adds wrongly, so that each one that passes has forged its verdict.
"""

ALWAYS_EQUAL = """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __hash__(self): return 5
    def __bool__(self): return True
    def __int__(self): return 7
    def __float__(self): return 7.0
    def __index__(self): return 7
    def __abs__(self): return self
    def __sub__(self, other): return self
    def __getattr__(self, name): return self
    def __call__(self, *args): return self
    def __len__(self): return 1
    def __iter__(self): return iter(())
    def __repr__(self): return "five"
"""

FORGERIES = {
    "os._exit(0)": "import os\nos._exit(0)",
    "sys.exit(0)": "import sys\nsys.exit(0)",
    "os._exit(0) in the function": "import os\ndef add(a, b): os._exit(0)",
    "sys.exit(0) in the function": "import sys\ndef add(a, b): sys.exit(0)",
    "exit in a thread": "import os, _thread as t\nt.start_new_thread(lambda: os._exit(0), ())\ndef add(a, b): return 0",
    "exit when it is collected": "import os\nclass D:\n    def __del__(s): os._exit(0)\ndef add(a, b): D(); return 0",
    "exit at the end": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef add(a, b): return 0",
    "kills itself": "import os\ndef add(a, b): os.kill(os.getpid(), 9)",
    "always equal": ALWAYS_EQUAL + "def add(a, b): return Equal()",
    "always equal in a list": ALWAYS_EQUAL + "def add(a, b): return [Equal()]",
    "an int that is always equal": ALWAYS_EQUAL + "class N(Equal, int): pass\ndef add(a, b): return N(0)",
    "a str that is always equal": ALWAYS_EQUAL + "class N(Equal, str): pass\ndef add(a, b): return N()",
    "lies about its class": "class N:\n    __class__ = int\n    def __eq__(s, o): return 1\ndef add(a, b): return N()",
    "a class for a function": ALWAYS_EQUAL + "add = Equal()",
    "is the module": ALWAYS_EQUAL + "import sys\nsys.modules['candidate'] = Equal()\ndef add(a, b): return 0",
    "NaN": "def add(a, b): return float('nan')",
    "patches builtins": """
import builtins
for name in "len abs all any sorted isinstance repr print sum set compile exec eval".split():
    setattr(builtins, name, lambda *a, **k: True)
builtins.AssertionError = ZeroDivisionError
builtins.__build_class__ = None
def add(a, b): return 0
""",
    "has names of the tests": """
def abs(x): return 5
def len(x): return 1
def all(x): return True
def sorted(x): return [1, 5]
def check(x): return True
def test_add(): return True
def isclose(a, b): return True
class math: isclose = fabs = staticmethod(lambda *a: 0)
__reached__ = candidate = __name__ = lambda *a: True
AssertionError = ValueError
def add(a, b): return 0
""",
    "imports patched modules": """
import math, sys
math.isclose = math.fabs = lambda *a: 0
sys.modules["math"] = math
def add(a, b): return 0
""",
    "looks for what is expected": """
import gc, os, sys
def found():
    for name in os.listdir("."):
        try: yield open(name, "rb").read().decode("latin-1")
        except OSError: pass
    frame = sys._getframe()
    while frame:
        yield repr(frame.f_locals); yield repr(frame.f_globals)
        frame = frame.f_back
    for thing in gc.get_objects():
        if isinstance(thing, (str, list, dict, tuple)):
            try: yield repr(thing)
            except Exception: pass
def add(a, b):
    # Backwards, so that it does not find its own text.
    return 5 if any("5 ==" in text[::-1] or "'tcepxe'" in text[::-1] for text in found()) else 0
""",
    "looks into its memory": """
def add(a, b):
    try:
        return 5 if open("/proc/self/mem", "rb").read(1 << 20) or True else 0
    except OSError:
        return 0
""",
    "writes reports to every file": """
import os, sys
encode = sys.modules["rsft_cluster.constraints.programs.sandbox.inside.plain"].encode
def framed(value):
    data = encode(value)
    return len(data).to_bytes(4, "big") + data
reports = b"".join(framed((n, "passed", "")) for n in range(9)) + framed(("value", 0)) * 9
for number in range(64):
    try: os.write(number, reports)
    except OSError: pass
def add(a, b): return 0
""",
    "writes reports before it ends": """
import os, sys
encode = sys.modules["rsft_cluster.constraints.programs.sandbox.inside.plain"].encode
def add(a, b):
    for number in range(64):
        for value in ((0, "passed", ""), "passed", True):
            data = encode(value)
            try: os.write(number, len(data).to_bytes(4, "big") + data)
            except OSError: pass
    os._exit(0)
""",
    "writes rubbish": """
import os
for n in range(3, 64):
    try: os.write(n, b"\\xff" * 4096)
    except OSError: pass
def add(a, b): return 0
""",
    "writes rubbish of the right length": """
import os
def add(a, b):
    for n in range(3, 64):
        try: os.write(n, (8).to_bytes(4, "big") + b"t2;s5;v" + b"!")
        except OSError: pass
    return 0
""",
    "patches how values are sent": """
import sys
plain = sys.modules["rsft_cluster.constraints.programs.sandbox.inside.plain"]
side = sys.modules["rsft_cluster.constraints.programs.sandbox.inside.program_side"]
for module in (plain, side):
    module.encode = lambda *a, **k: b"h" + b"i0;" + b"s3;int"
def add(a, b): return 0
""",
    "sends a set of lists": """
import sys
side = sys.modules["rsft_cluster.constraints.programs.sandbox.inside.program_side"]
side.encode = lambda *a, **k: b"S1;l0;"
def add(a, b): return 0
""",
    "sends a value without end": """
import sys
side = sys.modules["rsft_cluster.constraints.programs.sandbox.inside.program_side"]
side.encode = lambda *a, **k: b"l1;" * 100_000
def add(a, b): return 0
""",
    "sends more than may come": "def add(a, b): return 'x' * (64 << 20)",
    "nests without end": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "raises an assertion": "def add(a, b): raise AssertionError",
    "raises what ends a loop": "def add(a, b): raise StopIteration",
    "raises what ends a program": "def add(a, b): raise KeyboardInterrupt",
    "raises a class of its own": "class E(BaseException): pass\ndef add(a, b): raise E",
    "raises what cannot be told": "class E(Exception):\n    def __str__(self): raise self\ndef add(a, b): raise E",
    "handles signals": "import signal\nfor n in 2, 10, 14, 15: signal.signal(n, lambda *a: 0)\ndef add(a, b): return 0",
    "traces": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef add(a, b): return 0",
    "hooks exceptions": "import sys\nsys.excepthook = sys.unraisablehook = lambda *a: None\nadd = None",
    "removes modules": "import sys\nsys.modules.clear()\ndef add(a, b): return 0",
    "has no function": "x = 5",
    "is no Python": "def add(a, b:\n    return 5",
    "is nothing": "",
    "holds a null byte": "x = '\x00'",
    "is nested too deeply": "x = " + "(" * 5000 + ")" * 5000,
    "an endless iterator": "def add(a, b):\n    while True: yield 0",
    "closes its files": "import os\nos.closerange(0, 64)\ndef add(a, b): return 0",
}
HANGS = {
    "hangs when it is loaded": "while True: pass",
    "hangs in the function": "import time\ndef add(a, b): time.sleep(60)",
    "never reads": "import os\nos.read = lambda *a: __import__('time').sleep(60)\ndef add(a, b): return 0",
}
