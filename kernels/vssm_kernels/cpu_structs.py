"""What goes to the compiled CPU library: the structs of kernels/csrc/scan_args.h, field for field."""

import ctypes

__all__ = ["Deform", "Depthwise", "DepthwiseGrad", "Mamba", "Map", "Neighborhood", "Norm", "Scan2d", "Ssd"]


class Map(ctypes.Structure):
    """`Map` of kernels/csrc/scan_args.h."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "position", "sequence"))]


class Scan2d(ctypes.Structure):
    """`Scan2d` of kernels/csrc/scan_args.h, field for field."""

    _sizes = ("batch", "positions", "channels", "sequences", "routes", "states", "rank")
    _flags = ("softplus", "merge", "own_input", "dtype")
    _tables = ("starts", "first_route", "visited", "route_rows", "covers")
    _maps = ("u", "dt", "B", "C")
    _parameters = ("A", "D", "delta_bias", "dt_weight")
    _fields_ = [
        *((name, ctypes.c_int64) for name in _sizes + _flags),
        *((name, ctypes.c_void_p) for name in _tables),
        *((name, Map) for name in _maps),
        *((name, ctypes.c_void_p) for name in _parameters),
    ]


class Mamba(ctypes.Structure):
    """`Mamba` of kernels/csrc/scan_args.h, field for field."""

    _fields_ = [
        ("scan", ctypes.POINTER(Scan2d)),
        ("xz", ctypes.c_void_p),
        ("taps", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("conv_weight", "conv_bias", "projection", "u", "projected")),
        ("scale", ctypes.c_float),
    ]


class Depthwise(ctypes.Structure):
    """`Depthwise` of kernels/csrc/scan_args.h, field for field."""

    _sizes = ("images", "height", "width", "out_height", "out_width", "channels", "stride", "taps")
    _flags = ("dense3", "replicate", "silu", "x_dtype", "y_dtype")
    _fields_ = [
        *((name, ctypes.c_int64) for name in _sizes + _flags),
        *((name, ctypes.c_void_p) for name in ("offsets", "weight", "bias", "x")),
        *((name, ctypes.c_int64) for name in ("x_image", "x_row", "x_column")),
        *((name, ctypes.c_void_p) for name in ("scale", "skip", "other")),
        *((name, ctypes.c_int64) for name in ("other_image", "other_row", "other_column")),
        ("y", ctypes.c_void_p),
    ]


class DepthwiseGrad(ctypes.Structure):
    """`DepthwiseGrad` of kernels/csrc/scan_args.h, field for field."""

    _sizes = ("images", "height", "width", "out_height", "out_width", "channels", "stride", "taps", "parts")
    _fields_ = [
        *((name, ctypes.c_int64) for name in (*_sizes, "x_dtype", "g_dtype")),
        *((name, ctypes.c_void_p) for name in ("offsets", "x")),
        *((name, ctypes.c_int64) for name in ("x_image", "x_row", "x_column")),
        ("g", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("g_image", "g_row", "g_column")),
        ("sums", ctypes.c_void_p),
    ]


class Deform(ctypes.Structure):
    """`Deform` of kernels/csrc/scan_args.h, field for field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "groups", "group_channels")),
        *((name, ctypes.c_void_p) for name in ("x", "numbers", "y", "grad", "grad_x", "grad_numbers")),
    ]


class Neighborhood(ctypes.Structure):
    """`Neighborhood` of kernels/csrc/scan_args.h, field for field."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("images", "height", "width", "heads", "channels", "value_channels")),
        *((n, ctypes.c_int64) for n in ("window_height", "window_width", "dilation_height", "dilation_width")),
        *((n, ctypes.c_int64) for n in ("rows", "dtype")),
        ("scale", ctypes.c_double),
        *((n, ctypes.c_void_p) for n in ("q", "k", "v")),
        *((n, ctypes.c_int64 * 4) for n in ("q_strides", "k_strides", "v_strides")),
        *((n, ctypes.c_void_p) for n in ("bias", "y", "grad_y", "grad_q", "grad_k", "grad_v", "grad_bias")),
    ]


class Ssd(ctypes.Structure):
    """`Ssd` of kernels/csrc/scan_args.h, field for field."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "length", "heads", "head_dim", "groups", "states", "softplus")),
        *((n, ctypes.c_void_p) for n in ("x", "dt", "A", "B", "C", "D", "dt_bias", "y")),
        *((n, ctypes.c_void_p) for n in ("grad_y", "grad_x", "grad_dt", "grad_B", "grad_C", "grad_A")),
    ]


class Norm(ctypes.Structure):
    """`Norm` of kernels/csrc/scan_args.h, field for field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "groups", "channels", "silu", "x_dtype", "y_dtype")),
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("x_row", "x_group")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "gate")),
        *((name, ctypes.c_int64) for name in ("gate_row", "gate_group")),
        ("y", ctypes.c_void_p),
        ("eps", ctypes.c_double),
    ]
