// tr_mmap for C++17: drive a Python worker, and move large tensors between it and this program without copying them.
//
//     #include <tr_mmap/tr_mmap.hpp>
//
//     tr::PythonSession session;                              // the worker that ships with the package
//     session.start();
//     session.wait_until_ready(5000);
//     tr::Tensor a = session.empty<float>(tr::Shape(4, 3));   // a loan: it lives in shared memory
//     a.fill(1.5f);
//     tr::Tensor b = tr::Tensor::full(tr::Shape(3, 5), 2.0f);
//     tr::Tensor c = session.calculate("matmul", a, b);       // a view of the worker's memory
//     c.print("c");
//
// Needs Linux, the standard library and the threads library: g++ -std=c++17 -I"$(tr-mmap include)" x.cpp -pthread.
// (Before glibc 2.34 also -lrt.) The worker is a Python that has the package tr_mmap; see SessionOptions::python.
//
// What goes between the two processes, byte for byte, is specified by the Python package: tensors and segments by the
// docstring of tr_mmap/tsr/__init__.py, messages by tr_mmap/protocol and tr_mmap/channel/mapped.py. The constants that
// both languages must agree on are generated from tr_mmap/wire: wire.hpp and dtype_table.hpp.
//
// Memory order. Segments are handed over with release stores and acquire loads of their sequence numbers, and a full
// fence between a store and a load that must not come before it; layout.hpp explains why. So this side is right on Arm
// too, whose processors reorder what x86 does not. Little-endian machines only.
#ifndef TR_MMAP_HPP
#define TR_MMAP_HPP

#include "macros_off.hpp"

#include "errors.hpp"  // first: it says which compiler options the headers need

#include "dtype.hpp"
#include "session.hpp"
#include "shape.hpp"
#include "tensor.hpp"
#include "tsr.hpp"

#include "macros_on.hpp"

#endif  // TR_MMAP_HPP
