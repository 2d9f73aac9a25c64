// The original framework's name for it all: #include "tech_renaissance.h". Its programs compile as they stand with
// -I"$(tr-mmap include)". They get tr_mmap's own types, and the names of the original beside these: Logger,
// BackendManager, CpuBackend, PyTorchSession, WORKSPACE_PATH. The headers in tech_renaissance/ all lead to this one.
//
// In a program that includes this, a Shape's text is "(4,5)", in all files of the program.
//
// TR_BUILD_PYTHON_SESSION and TR_BUILD_PYTORCH_SESSION are defined, for programs that ask for them with #ifdef. If
// TR_WITHOUT_PYTHON_SESSION or TR_WITHOUT_PYTORCH_SESSION is defined, as the options of the CMake package do, that
// session and its macro are missing.
#ifndef TECH_RENAISSANCE_H
#define TECH_RENAISSANCE_H

// What the original's programs use without including it.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <iomanip>
#include <iostream>
#include <memory>
#include <mutex>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tech_renaissance/parts/backends.hpp"
#include "tech_renaissance/parts/logger.hpp"
#include "tech_renaissance/parts/shape_text.hpp"
#include "tech_renaissance/parts/workspace_path.hpp"
#include "tr_mmap/dtype.hpp"
#include "tr_mmap/errors.hpp"
#include "tr_mmap/shape.hpp"
#include "tr_mmap/tensor.hpp"
#include "tr_mmap/tsr.hpp"

#if defined(TR_WITHOUT_PYTHON_SESSION)
#undef TR_BUILD_PYTHON_SESSION
#else
#include "tr_mmap/session.hpp"
#ifndef TR_BUILD_PYTHON_SESSION
#define TR_BUILD_PYTHON_SESSION 1
#endif
#endif

#if defined(TR_WITHOUT_PYTORCH_SESSION)
#undef TR_BUILD_PYTORCH_SESSION
#else
#include "tech_renaissance/parts/pytorch_session.hpp"
#ifndef TR_BUILD_PYTORCH_SESSION
#define TR_BUILD_PYTORCH_SESSION 1
#endif
#endif

#if defined(TR_WITHOUT_PYTHON_SESSION) && !defined(TR_WITHOUT_PYTORCH_SESSION)
// PyTorchSession needs the class PythonSession, so it exists; but a program that has left it out must not use its name.
// All headers that use the name are included above.
#include "tr_mmap/tr_mmap.hpp"
#pragma GCC poison PythonSession
#endif

#endif  // TECH_RENAISSANCE_H
