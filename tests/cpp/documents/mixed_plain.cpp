// The other file of mixed.cpp. It has names of its own that tech_renaissance.h would bring.
#include <tr_mmap/tr_mmap.hpp>

#include <sstream>
#include <string>

using namespace tr;

namespace {
class Backend {};
}  // namespace

class Logger {
public:
    static int error(int code) { return code; }
};
class ScopedPythonSession : Backend {};

extern "C" int use_tr_mmap_only(const PythonSession* session, Tensor* tensor, std::string* text);

extern "C" int use_tr_mmap_only(const PythonSession* session, Tensor* tensor, std::string* text) {
    static_cast<void>(ScopedPythonSession());
    session->send_tensor(*tensor, "mixed");
    *tensor = session->fetch_tensor("square mixed", 60'000);
    std::ostringstream shown;
    shown << tensor->shape();
    *text = shown.str();
    return tensor->device() == CPU ? 0 : Logger::error(1);
}
