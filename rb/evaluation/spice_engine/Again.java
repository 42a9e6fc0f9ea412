import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.reflect.Method;
import java.nio.charset.StandardCharsets;

/**
 * Runs the program of a class, which is named by the first argument, any number of times in one process.
 *
 * Each line of stdin is one run: its arguments, with a tab between two of them. When a run has ended, a line of stdout says so. What the
 * program itself writes to stdout goes to stderr. The process ends with its stdin, or where a run calls System.exit.
 */
public final class Again {
  public static void main(String[] names) throws Exception {
    PrintStream answers = System.out;
    System.setOut(System.err);
    Method program = Class.forName(names[0]).getMethod("main", String[].class);
    BufferedReader runs = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = runs.readLine(); line != null; line = runs.readLine()) {
      program.invoke(null, (Object) line.split("\t"));
      answers.println("done");
      answers.flush();
    }
  }
}
