version: str
torch_version: str
compiler: str
cuda_version: str
cuda_architectures: str

def cpu_isa() -> str: ...
def cpu_isas() -> list[str]: ...
