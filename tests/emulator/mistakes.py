"""The seeded mistakes: each with the flavour and schedule that catches it, and what the report says."""

from typing import NamedTuple


class Mistake(NamedTuple):
    """Number `number` of the kernels in `case` (tests/emulator/mistakes/*.cu)."""

    number: int
    case: str
    what: str
    flavour: str
    order: str
    completion: str
    report: str


MISTAKES = [
    Mistake(
        1,
        "channel",
        "no barrier before partial results are read",
        "race",
        "forward",
        "eager",
        "UNINITIALISED SHARED MEMORY",
    ),
    Mistake(2, "channel", "early return before a barrier", "plain", "forward", "eager", "a thread exits while"),
    Mistake(3, "channel", "a barrier of its own in each branch", "plain", "forward", "eager", "DIVERGENT BARRIER"),
    Mistake(4, "channel", "loop one too far", "san", "forward", "eager", "heap-buffer-overflow"),
    Mistake(
        5, "channel", "reads shared memory that nobody wrote", "race", "forward", "eager", "UNINITIALISED SHARED MEMORY"
    ),
    Mistake(6, "shared_channel", "no barrier in a tree reduction", "race", "forward", "eager", "DATA RACE"),
    Mistake(
        7, "shared_channel", "last block combines: no fence before the counter", "race", "forward", "eager", "DATA RACE"
    ),
    Mistake(
        8,
        "shared_channel",
        "last block combines: no barrier before the counter",
        "race",
        "forward",
        "eager",
        "DATA RACE",
    ),
    Mistake(9, "grid_sum", "cooperative grid without a grid barrier", "race", "forward", "eager", "DATA RACE"),
    Mistake(10, "gemm_ampere", "cp.async wait off by one", "plain", "forward", "lazy", "wrong result"),
    Mistake(11, "gemm_ampere", "no barrier after the cp.async wait", "race", "forward", "eager", "DATA RACE"),
    Mistake(12, "gemm_ampere", "no barrier before a stage is overwritten", "race", "forward", "eager", "DATA RACE"),
    Mistake(13, "gemm_ampere", "ldmatrix with A's pattern for B", "plain", "forward", "eager", "wrong result"),
    Mistake(
        14, "shared_channel", "last block combines: no fence after the counter", "race", "forward", "eager", "DATA RACE"
    ),
    Mistake(
        15, "grid_sum", "grid barrier without a cooperative launch", "plain", "forward", "eager", "not cooperative"
    ),
    Mistake(
        16, "gemm_ampere", "the tail of K is read from the next row", "san", "forward", "eager", "heap-buffer-overflow"
    ),
    Mistake(17, "gemm_ampere", "cp.async group never committed", "plain", "forward", "lazy", "wrong result"),
    Mistake(18, "gemm_ampere", "halves of B swapped", "plain", "forward", "eager", "wrong result"),
    Mistake(19, "gemm_ampere", "rows past the end are stored", "san", "forward", "eager", "heap-buffer-overflow"),
    Mistake(20, "transpose", "no __syncwarp before ldmatrix", "race", "forward", "eager", "DATA RACE"),
    Mistake(22, "transpose", "stmatrix past the end", "plain", "forward", "eager", "outside every shared variable"),
    Mistake(23, "transpose", "no __syncwarp after stmatrix", "race", "forward", "eager", "DATA RACE"),
    Mistake(
        30,
        "gemm_hopper",
        "no barrier after mbarrier_init",
        "plain",
        "reverse",
        "eager",
        "used before its initialisation",
    ),
    Mistake(31, "gemm_hopper", "producer starts with the wrong parity", "plain", "forward", "eager", "DEADLOCK"),
    Mistake(32, "gemm_hopper", "producer never waits for an empty stage", "plain", "forward", "eager", "DEADLOCK"),
    Mistake(33, "gemm_hopper", "expects more bytes than come", "plain", "forward", "eager", "DEADLOCK"),
    Mistake(34, "gemm_hopper", "consumer never waits for a full stage", "plain", "forward", "eager", "DEADLOCK"),
    Mistake(35, "gemm_hopper", "no wgmma_fence", "plain", "forward", "eager", "without a wgmma fence"),
    Mistake(36, "gemm_hopper", "k step of 16 bytes instead of 32", "plain", "forward", "eager", "wrong result"),
    Mistake(37, "gemm_hopper", "wrong stride in a descriptor", "plain", "forward", "eager", "wrong result"),
    Mistake(38, "gemm_hopper", "empty barrier expects one arrival too few", "plain", "forward", "eager", "DEADLOCK"),
    Mistake(39, "gemm_hopper", "expects A's bytes only", "plain", "forward", "eager", "bytes pending on mbarrier"),
    Mistake(40, "gemm_hopper", "stage freed before the products are done", "race", "forward", "eager", "DATA RACE"),
    Mistake(41, "gemm_hopper", "last products never waited for", "plain", "forward", "eager", "was never waited for"),
    Mistake(
        42,
        "gemm_hopper",
        "no fence_proxy_async before a TMA store",
        "race",
        "forward",
        "eager",
        "MISSING fence_proxy_async",
    ),
    Mistake(43, "gemm_hopper", "wrong TMA coordinate", "plain", "forward", "eager", "wrong result"),
    Mistake(
        44,
        "gemm_hopper_cluster",
        "producer leaves while peers still arrive",
        "plain",
        "forward",
        "lazy",
        "which has exited",
    ),
    Mistake(45, "gemm_hopper", "descriptor names another swizzle", "plain", "forward", "eager", "wrong result"),
    Mistake(46, "gemm_hopper", "epilogue without the swizzle", "plain", "forward", "eager", "wrong result"),
    Mistake(
        47, "gemm_hopper", "no barrier before the TMA store", "race", "forward", "eager", "UNINITIALISED SHARED MEMORY"
    ),
    Mistake(
        48,
        "gemm_hopper",
        "exit with a TMA store under way",
        "plain",
        "forward",
        "eager",
        "may still read shared memory",
    ),
    Mistake(49, "gemm_hopper", "tensor map without swizzle", "plain", "forward", "eager", "wrong result"),
    Mistake(
        50,
        "gemm_hopper_cluster",
        "multicast to a block that is not there",
        "plain",
        "forward",
        "eager",
        "multicast mask",
    ),
    Mistake(
        51,
        "gemm_hopper",
        "TMA destination not aligned to 128 bytes",
        "plain",
        "forward",
        "eager",
        "not aligned to 128 bytes",
    ),
    Mistake(
        52, "gemm_hopper", "descriptor differs between warps", "plain", "forward", "eager", "differ between the threads"
    ),
    Mistake(53, "gemm_hopper", "wgmma never committed", "plain", "forward", "eager", "never committed"),
    Mistake(54, "gemm_hopper", "stage freed twice", "plain", "forward", "eager", "DEADLOCK"),
    Mistake(55, "gemm_hopper_cluster", "peers' mbarriers never told", "race", "forward", "eager", "DATA RACE"),
    Mistake(
        56,
        "gemm_hopper_cluster",
        "no cluster barrier after mbarrier_init",
        "plain",
        "reverse",
        "eager",
        "used before its initialisation",
    ),
    Mistake(57, "gemm_hopper", "named barrier 21", "plain", "forward", "eager", "barriers 0 to 15"),
    Mistake(58, "gemm_hopper", "named barrier with 96 of 128 threads", "plain", "forward", "eager", "DEADLOCK"),
    Mistake(59, "gemm_hopper", "TMA store never committed", "plain", "forward", "eager", "never committed"),
    Mistake(60, "warp_exchange", "no __syncwarp", "race", "forward", "eager", "UNINITIALISED SHARED MEMORY"),
    Mistake(61, "partial_shuffle", "shuffle in a divergent branch", "plain", "forward", "eager", "wrong result"),
    Mistake(62, "shift", "writes past a shared array", "plain", "forward", "eager", "write past the end"),
    Mistake(63, "reverse", "too little dynamic shared memory", "plain", "forward", "eager", "write past the end"),
    Mistake(64, "histogram", "plain increment instead of an atomic", "race", "forward", "eager", "DATA RACE"),
    Mistake(65, "accumulate", "accumulator not initialised", "plain", "forward", "eager", "wrong result"),
    Mistake(66, "transpose", "ldmatrix row not aligned", "plain", "forward", "eager", "not aligned to 16 bytes"),
    Mistake(67, "chain", "waits for an earlier block without a ticket", "plain", "reverse", "eager", "LIVELOCK"),
    Mistake(68, "one_cell_per_block", "two blocks write one cell", "race", "forward", "eager", "DATA RACE"),
    Mistake(69, "reverse", "1056 threads in a block", "plain", "forward", "eager", "over 1024 threads"),
    Mistake(
        71, "moments", "vector loads at an unaligned address", "plain", "forward", "eager", "not aligned to 16 bytes"
    ),
    Mistake(72, "chain", "flag read without a fence behind it", "race", "forward", "eager", "DATA RACE"),
    Mistake(73, "chain", "flag set without a fence before it", "race", "forward", "eager", "DATA RACE"),
    Mistake(74, "index", "index overflows 32 bits", "san", "forward", "eager", "signed integer overflow"),
    Mistake(75, "index", "shift by 32", "san", "forward", "eager", "shift exponent"),
    Mistake(76, "tail_sum", "lanes leave before a warp reduction", "plain", "forward", "eager", "wrong result"),
    Mistake(77, "byte_counter", "atomic on a misaligned address", "plain", "forward", "eager", "misaligned address"),
    Mistake(78, "moments", "tail elements forgotten", "plain", "forward", "eager", "wrong result"),
    Mistake(80, "bulk", "mbarrier never initialised", "plain", "forward", "eager", "used before its initialisation"),
    Mistake(
        81, "bulk", "mbarrier overwritten by a store", "plain", "forward", "eager", "overwritten by ordinary stores"
    ),
    Mistake(82, "bulk", "one arrival too many", "plain", "forward", "eager", "pending in this phase"),
    Mistake(83, "bulk", "TMA coordinates swapped", "plain", "forward", "eager", "wrong result"),
    Mistake(84, "bulk", "bulk copy from an unaligned address", "plain", "forward", "eager", "not aligned to 16 bytes"),
    Mistake(85, "bulk", "bulk copy of 20 bytes", "plain", "forward", "eager", "a positive multiple of 16"),
    Mistake(86, "bulk", "consumer waits with the wrong parity", "plain", "forward", "eager", "DEADLOCK"),
    Mistake(87, "bulk", "neighbour's value overwritten before it is read", "race", "forward", "eager", "DATA RACE"),
    Mistake(
        88, "bulk", "no fence_proxy_async before a bulk store", "race", "forward", "eager", "MISSING fence_proxy_async"
    ),
    Mistake(
        89, "bulk", "exit with a bulk store under way", "plain", "forward", "eager", "may still read shared memory"
    ),
    Mistake(
        90,
        "bulk",
        "shared memory overwritten while a bulk store reads it",
        "race",
        "forward",
        "eager",
        "MISSING fence_proxy_async",
    ),
    Mistake(
        91,
        "neighbour",
        "neighbour block read before the cluster barrier",
        "race",
        "forward",
        "eager",
        "UNINITIALISED SHARED MEMORY",
    ),
    Mistake(92, "neighbour", "block outside the cluster", "plain", "forward", "eager", "names block"),
    Mistake(
        93, "neighbour", "block exits while its neighbour reads it", "plain", "forward", "eager", "which has exited"
    ),
    Mistake(94, "neighbour", "two arrivals at the cluster barrier", "plain", "forward", "eager", "second arrival"),
    Mistake(95, "neighbour", "no wait at the cluster barrier", "plain", "forward", "eager", "which has exited"),
    Mistake(
        96,
        "gather",
        "cluster's shared memory read before its barrier",
        "race",
        "forward",
        "eager",
        "UNINITIALISED SHARED MEMORY",
    ),
    Mistake(97, "gather", "16 bytes of the cluster at 4", "plain", "forward", "eager", "not aligned to 16 bytes"),
    Mistake(98, "gather", "own shared memory for everybody's", "plain", "forward", "eager", "wrong result"),
    Mistake(99, "gather", "block exits while the cluster reads it", "plain", "forward", "eager", "which has exited"),
    Mistake(100, "hand_over", "named barrier without the other half", "plain", "forward", "eager", "DEADLOCK"),
    Mistake(101, "hand_over", "named barrier with two thread counts", "plain", "forward", "eager", "DEADLOCK"),
    Mistake(102, "hand_over", "named barrier not waited for", "race", "forward", "eager", "DATA RACE"),
    Mistake(103, "hand_over", "another named barrier", "plain", "forward", "eager", "DEADLOCK"),
    Mistake(104, "copy", "cp.async to an unaligned address", "plain", "forward", "eager", "not aligned to 16 bytes"),
    Mistake(105, "copy", "cp.async never waited for", "plain", "forward", "lazy", "wrong result"),
    Mistake(106, "copy", "no barrier after cp.async", "race", "forward", "eager", "UNINITIALISED SHARED MEMORY"),
    Mistake(108, "elected", "elect in two branches", "plain", "forward", "eager", "DIVERGENT WARP"),
]
