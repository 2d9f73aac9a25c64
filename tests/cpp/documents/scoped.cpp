// The session's life is that of an object. The document's programs define this class themselves, so our headers may not
// have that name too: "using namespace tr" would make it ambiguous.
#include "tech_renaissance.h"
using namespace tr;

class ScopedPythonSession {
private:
    PythonSession session_;

public:
    ScopedPythonSession(const std::string& script, const std::string& id) : session_(script, id, false) {
        session_.start();
        session_.wait_until_ready(60000);
    }
    ~ScopedPythonSession() { session_.please_exit(30000, true); }
    PythonSession& get() { return session_; }
    const PythonSession* operator->() const { return &session_; }
};

int main() {
    Logger::get_instance().set_level(LogLevel::WARN);
    Logger::get_instance().info("below the level");
    try {
        ScopedPythonSession python("worker.py", "scoped_document");
        auto result = python.get().fetch_response("hello world", 30000);
        std::cout << result << ", " << python->fetch_response("hi there") << std::endl;
        python->fetch_response("no_such_command");
    } catch (const TRException& e) {
        Logger::get_instance().error("session error: ", e.what());
    } catch (const std::exception& e) {
        Logger::get_instance().error("another error: ", e.what());
    } catch (...) {
        Logger::get_instance().error("an unknown error");
    }
    try {
        ScopedPythonSession python("no_such_script.py", "scoped_document");
    } catch (const std::exception& e) {
        Logger::error("started: ", std::string(e.what()).find("no_such_script.py") != std::string::npos, " ", 2.5);
    }
    TR_LOG_WARN("warned");
    Logger::warning("warned twice");
    return 0;
}
